"""Measure the collectives of a real cluster and write them as a network that emulated clusters can use.

    python -m scripts.calibrate_network --backend gloo --ranks 2 4          # ranks on this machine
    torchrun ... -m scripts.calibrate_network --backend nccl --name ours    # inside a launch, on one or many nodes

Then: `python -m experiments.run network=gloo_here`. What is timed is what systems call (systems/collectives.py, which
allocates outputs), in float32 and with one thread a rank. All sizes take shuffled turns. On CPUs a call is made as a
layer makes it: ranks meet, each computes on its own for about a millisecond, which fills its caches with other things,
and then calls; back to back on warm buffers gloo needs half the time.

A call lasts from the last rank's start to the last rank's end. Where ranks share no clock (GPUs, several hosts) it is
the shortest duration that any rank saw, since the rank that comes last does not wait; of a broadcast, any receiver.
That is too short for a rank whose bytes are still on their way when its own call returns.

Sizes between those of the table are measured too but kept out: the error of the table on them is printed and stands in
the file. Uneven exchanges decide the one number `duplex`; what is left of their error stands beside the others.
"""

import argparse
import gc
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from scipy.optimize import isotonic_regression
from torch.cuda import nccl

from clusters.launch import LaunchFailed, launch, prepare
from clusters.network import Network
from clusters.session import ClusterSpec, Session, connect
from experiments.environment import describe
from experiments.machine import state
from systems.collectives import all_gather, all_to_all, reduce_scatter

ROOT = Path(__file__).parents[1]
ITEMSIZE = 4
COLLECTIVES = ("all_gather", "reduce_scatter", "all_to_all", "all_reduce", "broadcast")
WARM_UP, FEWEST, MOST = 3, 7, 150  # calls of one size
HOT = 4  # an uneven exchange sends rank 0 so many times what it sends to each other rank
COMPUTED_SIDE, EVICTED_BYTES = 384, 8 << 20  # what a CPU rank computes before a call: a product, and a pass over memory
BUSY_CYCLES = 200_000  # a tenth of a millisecond in which the host can queue a GPU's calls
QUIET_SHARE = 0.1  # of the cores busy with something else, above which a table is not worth much
TIMEOUT_S = 3600.0  # ranks outside a small group wait this long for it


@dataclass(frozen=True)
class Case:
    """A collective of one size.

    elements: of a rank's part (its input of an all-gather, its output of a reduce-scatter, what it sends to each rank
    in an all-to-all), else of the whole tensor. use: table, between (a size that the table lacks) or uneven.
    """

    collective: str
    ranks: int
    elements: int
    use: str = "table"

    @property
    def volume_bytes(self) -> int:
        """V, as clusters/network.py defines it."""
        return round(volume_factor(self.collective, self.ranks) * self.elements * ITEMSIZE)


def volume_factor(collective: str, ranks: int) -> float:
    """V over the bytes of `Case.elements`."""
    return {"all_reduce": 2 * (ranks - 1) / ranks, "broadcast": 1}.get(collective, ranks - 1)


def cases_for(ranks: int, max_bytes: int) -> list[Case]:
    """One element, then V = 1 KiB, 2 KiB, ... max_bytes; between them sizes to check; uneven exchanges."""
    doubling = [1024 << step for step in range((max_bytes // 1024).bit_length())]
    between = [512, *(round(size * 2**0.5) for size in doubling[:-1])]
    cases = []
    for collective in COLLECTIVES:
        per_element = volume_factor(collective, ranks) * ITEMSIZE
        table = {1, *(max(1, round(size / per_element)) for size in doubling)}
        held_out = {max(1, round(size / per_element)) for size in between} - table
        cases += [Case(collective, ranks, elements) for elements in sorted(table)]
        cases += [Case(collective, ranks, elements, "between") for elements in sorted(held_out)]
        if collective == "all_to_all":
            cases += [Case(collective, ranks, elements, "uneven") for elements in sorted(table) if elements >= HOT]
    return cases


def uneven_splits(elements: int, ranks: int, rank: int) -> tuple[list[int], list[int]]:
    """(received_G, sent_G) of an exchange whose busiest rank is the receiver 0; so it is with a hot expert."""
    share_G = [elements, *[elements // HOT] * (ranks - 1)]
    return [share_G[rank]] * ranks, share_G


def make_call(case: Case, x: torch.Tensor, group: dist.ProcessGroup) -> Callable[[], Any]:
    """The call of one case on the first elements of x."""
    part, whole = x[: case.elements], x[: case.ranks * case.elements]
    if case.use == "uneven":
        received_G, sent_G = uneven_splits(case.elements, case.ranks, group.rank())
        return lambda: all_to_all(x[: sum(sent_G)], group, received_G, sent_G)
    return {
        "all_gather": lambda: all_gather(part, group),
        "reduce_scatter": lambda: reduce_scatter(whole, group),
        "all_to_all": lambda: all_to_all(whole, group),
        "all_reduce": lambda: dist.all_reduce(part, group=group),
        "broadcast": lambda: dist.broadcast(part, src=0, group=group),
    }[case.collective]


def turns(repetitions: Sequence[int], seed: int = 0) -> Iterable[int]:
    """Case i repetitions[i] times, spread evenly over shuffled rounds, so that drift meets all sizes alike."""
    counts, rounds = np.asarray(repetitions), max(repetitions)
    generator = np.random.default_rng(seed)
    for number in range(rounds):
        due = np.flatnonzero(counts * (number + 1) // rounds > counts * number // rounds)
        yield from generator.permutation(due).tolist()


def durations(times_NR2: np.ndarray, collective: str, common_clock: bool) -> np.ndarray:
    """Seconds of N calls from each rank's (start, end).

    On one clock from the last start to the last end. Else the rank that came last has the shortest duration; the
    source of a broadcast does not count, because it does not wait for the receivers.
    """
    if common_clock:
        return times_NR2[..., 1].max(1) - times_NR2[..., 0].max(1)
    own_NR = times_NR2[..., 1] - times_NR2[..., 0]
    return own_NR[:, 1:].min(1) if collective == "broadcast" else own_NR.min(1)


class Timer:
    """Times calls on one group; every rank of it must ask for the same calls in the same order."""

    def __init__(self, session: Session, group: dist.ProcessGroup, common_clock: bool) -> None:
        self.clock, self.group, self.common_clock = session.clock, group, common_clock
        self._one = torch.zeros(1, device=session.device)
        self._matrix = torch.ones(COMPUTED_SIDE, COMPUTED_SIDE, device=session.device)
        self._elsewhere = torch.zeros(EVICTED_BYTES // ITEMSIZE if session.device.type == "cpu" else 1)

    def time(self, call: Callable[[], Any]) -> tuple[Any, Any]:
        """Marks around one call after all ranks have met, and on a CPU have computed."""
        if self._one.is_cuda:  # else the clock would run while the host still launches
            torch.cuda._sleep(BUSY_CYCLES)
        dist.all_reduce(self._one, group=self.group)
        if not self._one.is_cuda:
            torch.mm(self._matrix, self._matrix)
            self._elsewhere.add_(1.0)
        start = self.clock.mark()
        call()
        return start, self.clock.mark()

    def gather(self, marks: Sequence[tuple[Any, Any]]) -> np.ndarray:
        """[N, R, 2] seconds of all ranks; starts are 0 where there is no common clock."""
        own = [pair if self.common_clock else (0.0, self.clock.seconds(*pair)) for pair in marks]
        own_N2 = torch.tensor(own, dtype=torch.float64, device=self._one.device)
        return all_gather(own_N2, self.group).view(self.group.size(), -1, 2).transpose(0, 1).cpu().numpy()


def time_cases(timer: Timer, cases: Sequence[Case], x: torch.Tensor, seconds: float) -> list[dict[str, Any]]:
    """One row a case: the case, V, median microseconds and how many calls that is of."""
    calls = [make_call(case, x, timer.group) for case in cases]
    pilot = timer.gather([timer.time(call) for _ in range(WARM_UP) for call in calls])
    # The second call at the latest finds its connections and buffers there; the fastest is what repeats will cost.
    cost_s = (pilot[..., 1] - pilot[..., 0]).max(1).reshape(WARM_UP, -1).min(0)
    repetitions = np.clip(seconds / cost_s, FEWEST, MOST).astype(int).tolist()
    order = np.fromiter(turns(repetitions), dtype=int)
    gc.disable()
    times_NR2 = timer.gather([timer.time(calls[index]) for index in order])
    gc.enable()
    rows = []
    for index, case in enumerate(cases):
        seconds_N = durations(times_NR2[order == index], case.collective, timer.common_clock)
        measured = {"median_us": float(np.median(seconds_N)) * 1e6, "calls": len(seconds_N)}
        rows.append(asdict(case) | {"volume_bytes": case.volume_bytes} | measured)
    return rows


def measure(session: Session, ranks: Sequence[int], max_bytes: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of `time_cases` for groups of the first 2, 4, ... ranks; complete on rank 0."""
    common_clock = session.device.type == "cpu" and _one_kernel(session)
    # V of at most max_bytes with two ranks takes an input of twice that.
    x = torch.empty(2 * max_bytes // ITEMSIZE + max(ranks), device=session.device).fill_(0)
    rows = []
    for count in ranks:
        group = dist.new_group(list(range(count)))
        if session.rank < count:
            assert isinstance(group, dist.ProcessGroup)
            rows += time_cases(Timer(session, group, common_clock), cases_for(count, max_bytes), x, seconds)
        dist.barrier()
    return rows


def _one_kernel(session: Session) -> bool:
    """Whether all ranks read the same monotonic clock: a kernel has one, whatever namespaces its hosts live in."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    session.store.set(f"kernel.{session.rank}", boot_id.read_text() if boot_id.exists() else platform.node())
    return len({session.store.get(f"kernel.{rank}") for rank in range(session.world_size)}) == 1


def run_rank(folder: str) -> None:
    """Rank entry: reads spec.json, rank 0 leaves rows.json."""
    spec = json.loads((Path(folder) / "spec.json").read_text())
    with connect(ClusterSpec(**spec.pop("cluster")), Network("none"), Path(folder) / "baton") as session:
        rows = measure(session, **spec)
    if session.rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows))


def tables_of(rows: Iterable[dict[str, Any]]) -> dict[str, dict[int, list[list[float]]]]:
    """Tables for `Network`: bytes and microseconds, to 0.1 us.

    Isotonic regression makes them ascend: more bytes never take less time, and where measurements say otherwise their
    neighbours' mean is taken.
    """
    found: dict[str, dict[int, list[list[float]]]] = {}
    for row in sorted(rows, key=lambda row: row["volume_bytes"]):
        if row["use"] == "table":
            points = found.setdefault(row["collective"], {}).setdefault(row["ranks"], [])
            points.append([row["volume_bytes"], row["median_us"]])
    for table in (table for by_ranks in found.values() for table in by_ranks.values()):
        for point, ascending_us in zip(table, isotonic_regression([us for _, us in table]).x, strict=True):
            point[1] = round(float(ascending_us), 1)
    return found


def volume_of(row: dict[str, Any], network: Network) -> float:
    """V of a row; of an uneven exchange as the network's duplex has it."""
    if row["use"] != "uneven":
        return row["volume_bytes"]
    splits = [uneven_splits(row["elements"], row["ranks"], rank)[1] for rank in range(row["ranks"])]
    sent_GG = np.array(splits, dtype=float) * (1 - np.eye(row["ranks"])) * ITEMSIZE
    return network.volumes(row["collective"], sent_GG, range(row["ranks"]))[0]


def fitted(name: str, rows: Sequence[dict[str, Any]]) -> Network:
    """The tables, and the duplex (in tenths) with which the uneven exchanges are met best.

    Errors count in microseconds, so that the large exchanges decide, in which the bytes and not the latency cost time.
    """
    tables = tables_of(rows)
    uneven = [row for row in rows if row["use"] == "uneven"]

    def error(network: Network) -> float:
        predicted_us = [1e6 * network.seconds(r["collective"], (volume_of(r, network),), r["ranks"]) for r in uneven]
        return float(np.abs(np.subtract(predicted_us, [row["median_us"] for row in uneven])).sum())

    return min((Network(name, duplex=tenths / 10, tables=tables) for tenths in range(10, -1, -1)), key=error)


def errors_of(rows: Iterable[dict[str, Any]], network: Network) -> list[str]:
    """One line a collective, number of ranks and kind of check: how far the network is from what its tables lack."""
    checks: dict[tuple[str, int, str], list[tuple[float, int]]] = {}
    for row in rows:
        if row["use"] != "table":
            predicted_us = network.seconds(row["collective"], (volume_of(row, network),), row["ranks"]) * 1e6
            error = (predicted_us / row["median_us"] - 1, row["volume_bytes"])
            checks.setdefault((row["collective"], row["ranks"], row["use"]), []).append(error)
    lines = [f"{'collective':<15}{'ranks':>5}  {'sizes':<8}{'median error':>13}{'worst':>9}  at bytes"]
    for (collective, ranks, use), errors in sorted(checks.items()):
        median, worst = np.median([abs(error) for error, _ in errors]), max(errors, key=lambda error: abs(error[0]))
        lines.append(f"{collective:<15}{ranks:>5}  {use:<8}{median:>13.1%}{worst[0]:>+9.1%}  {worst[1]}")
    return lines


def document(name: str, rows: Sequence[dict[str, Any]], source: str) -> str:
    """The YAML file: what was measured, how good the table is, the table."""
    network = fitted(name, rows)
    errors = errors_of(rows, network)
    header = [
        "Measured by scripts/calibrate_network.py: medians, made to ascend by isotonic regression.",
        "Error, predicted / measured - 1, on calls that are not in the table (uneven ones chose the duplex):",
        *errors,
    ]
    node = {"_target_": "clusters.network.Network", "name": name, "duplex": network.duplex, "tables": tables_of(rows)}
    node["source"] = source
    body = yaml.safe_dump(node, sort_keys=False, default_flow_style=None, width=120)
    return "".join(f"# {line}\n" for line in header) + body


def source_of(options: argparse.Namespace, busy_share: float) -> str:
    machine = describe()
    device = machine["gpus"][0] if options.backend == "nccl" else f"{machine['cpu']}, {machine['cores']} cores a host"
    hosts = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    library = f"NCCL {'.'.join(map(str, nccl.version()))}" if options.backend == "nccl" else "gloo"
    crowded = ", more ranks than cores" if options.oversubscribe else ""
    return (
        f"measured {date.today()} ({library}, torch {torch.__version__}, {hosts} host(s), {device}{crowded}, "
        f"{busy_share:.0%} busy before, {platform.system()} {platform.release()})"
    )


def parse_bytes(text: str) -> int:
    """64M -> 67108864; at least 1K."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    size = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else 0
    if size < 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of at least 1K; write bytes or 4K, 64M, 1G")
    return size


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo")
    parser.add_argument("--ranks", type=int, nargs="+", help="default: the cores or GPUs here, or the launch's ranks")
    parser.add_argument("--max-bytes", type=parse_bytes, default="64M", help="largest V, 64M unless given")
    parser.add_argument("--seconds", type=float, default=0.3, help="to spend on each size of each collective")
    parser.add_argument("--name", help="of the network; default BACKEND_here")
    parser.add_argument("--out", type=Path, help="default conf/network/NAME.yaml")
    parser.add_argument("--oversubscribe", action="store_true", help="allow more ranks than cores")
    options = parser.parse_args(arguments)
    options.name = options.name or (options.out.stem if options.out else f"{options.backend}_here")
    options.out = options.out or ROOT / "conf/network" / f"{options.name}.yaml"
    return options


def cluster_for(options: argparse.Namespace) -> ClusterSpec:
    """The cluster to measure; fills in options.ranks. Raises ValueError, in one sentence, for what cannot be done."""
    device = "cuda" if options.backend == "nccl" else "cpu"
    inside_launch = "RANK" in os.environ
    here = torch.cuda.device_count() if device == "cuda" else len(os.sched_getaffinity(0))
    launched = int(os.environ["WORLD_SIZE"]) if inside_launch else None
    options.ranks = sorted(set(options.ranks or [launched or here]))
    most = options.ranks[-1]
    if options.ranks[0] < 2:
        devices = "GPU(s)" if device == "cuda" else "core(s)"
        raise ValueError(f"--ranks has {options.ranks[0]}; a collective needs at least 2 (found {here} {devices})")
    if launched is not None and most > launched:
        raise ValueError(f"--ranks has {most}, but the launch has {launched} ranks")
    on_one_host = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if inside_launch else most
    if device == "cpu" and on_one_host > here and not options.oversubscribe:
        raise ValueError(f"{on_one_host} ranks on {here} core(s) would time the scheduler; --oversubscribe allows it")
    if options.seconds <= 0:
        raise ValueError(f"--seconds is {options.seconds}; it must be positive")
    if not options.out.parent.is_dir():
        raise ValueError(f"--out is {options.out}, but there is no folder {options.out.parent}")
    kind = "torchrun" if inside_launch else options.backend
    spec = ClusterSpec(kind, launched or most, device, TIMEOUT_S, threads=1)
    spec.check()
    return spec


def collect(spec: ClusterSpec, options: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Start the ranks, or be one under torchrun; rows, or None on ranks that have none to tell."""
    settings = {"ranks": options.ranks, "max_bytes": options.max_bytes, "seconds": options.seconds}
    with tempfile.TemporaryDirectory() as folder:
        if spec.kind == "torchrun":
            with connect(spec, Network("none"), Path(folder) / "baton") as session:
                rows = measure(session, **settings)
            return rows if session.rank == 0 else None
        (Path(folder) / "spec.json").write_text(json.dumps(settings | {"cluster": asdict(spec)}))
        prepare(spec, ["scripts.calibrate_network"])
        launch(spec, run_rank, folder)
        return json.loads((Path(folder) / "rows.json").read_text())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print latency, bandwidth and errors, write the file."""
    options = parse(arguments)
    try:
        spec = cluster_for(options)
        busy_share = state("cpu")["busy_share"]
        if os.environ.get("RANK", "0") == "0":
            announce(options, busy_share)
        rows = collect(spec, options)
    except (ValueError, LaunchFailed) as error:
        print(f"calibrate_network: {error}")
        return 2
    if rows:
        text = document(options.name, rows, source_of(options, busy_share))
        options.out.write_text(text)
        print(*summary(rows), *(line[2:] for line in text.splitlines() if line.startswith("# ")), sep="\n")
        print(f"wrote {options.out}")
    return 0


def announce(options: argparse.Namespace, busy_share: float) -> None:
    least_s = sum(len(cases_for(count, options.max_bytes)) for count in options.ranks) * options.seconds
    print(f"{options.backend}, ranks {options.ranks}: at least {least_s:.0f} s", flush=True)
    if busy_share > QUIET_SHARE:
        print(f"warning: {busy_share:.0%} of the cores are busy with something else, which the table will contain")


def summary(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Latency and the bandwidth between the last two points of each table."""
    lines = [f"{'collective':<15}{'ranks':>5}{'latency us':>12}{'GB/s':>8}"]
    for collective, by_ranks in tables_of(rows).items():
        for ranks, table in by_ranks.items():
            (size, us), (last, last_us) = table[-2:]
            gbs = (last - size) / max(last_us - us, 0.1) / 1e3
            lines.append(f"{collective:<15}{ranks:>5}{table[0][1]:>12.1f}{gbs:>8.2f}")
    return lines


if __name__ == "__main__":
    from scripts import calibrate_network  # ranks cannot import a function of the main module

    raise SystemExit(calibrate_network.main())
