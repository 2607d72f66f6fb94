"""How long collectives take on a real cluster; scripts/calibrate_network.py says what is timed, and why so.

Letters in names: N calls, R ranks.
"""

import gc
import json
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from clusters.launch import launch, prepare
from clusters.network import Network
from clusters.session import ClusterSpec, Session, connect
from scripts.calibration.cases import ITEMSIZE, Case, Timing, cases_for, uneven_splits
from systems.collectives import all_gather, all_to_all, reduce_scatter

WARM_UP, FEWEST, MOST = 3, 7, 150  # calls of one size
COMPUTED_SIDE, EVICTED_BYTES = 384, 8 << 20  # what a CPU rank computes before a call: a product, and a pass over memory
LATE_S = 5e-3  # longer than a slice of the scheduler, in which a rank that computes may not see what has arrived
BUSY_CYCLES = 200_000  # a tenth of a millisecond in which the host can queue a GPU's calls


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


def turns(repetitions: Sequence[int]) -> Iterable[int]:
    """Case i repetitions[i] times, spread evenly over shuffled rounds, so that drift meets all sizes alike."""
    counts, rounds = np.asarray(repetitions), max(repetitions)
    generator = np.random.default_rng(0)
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

    def time(self, call: Callable[[], Any], late_rank: int | None = None) -> tuple[Any, Any]:
        """Marks around one call after all ranks have met, and on a CPU have computed, late_rank for longer."""
        if self._one.is_cuda:  # else the clock would run while the host still launches
            torch.cuda._sleep(BUSY_CYCLES)
        dist.all_reduce(self._one, group=self.group)
        if not self._one.is_cuda:
            torch.mm(self._matrix, self._matrix)
            self._elsewhere.add_(1.0)
        if late_rank == self.group.rank():
            _spin(LATE_S)
        start = self.clock.mark()
        call()
        return start, self.clock.mark()

    def gather(self, marks: Sequence[tuple[Any, Any]]) -> np.ndarray:
        """[N, R, 2] seconds of all ranks; starts are 0 where there is no common clock."""
        own = [pair if self.common_clock else (0.0, self.clock.seconds(*pair)) for pair in marks]
        own_N2 = torch.tensor(own, dtype=torch.float64, device=self._one.device)
        return all_gather(own_N2, self.group).view(self.group.size(), -1, 2).transpose(0, 1).cpu().numpy()


def _spin(seconds: float) -> None:
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        pass


def repetitions_for(timer: Timer, calls: Sequence[Callable[[], Any]], seconds: float) -> list[int]:
    """How often each call fits into so many seconds, FEWEST to MOST times; all of them are warm then."""
    pilot_NR2 = timer.gather([timer.time(call) for _ in range(WARM_UP) for call in calls])
    # The second call at the latest finds its connections and buffers there; the fastest is what repeats will cost.
    cost_s = (pilot_NR2[..., 1] - pilot_NR2[..., 0]).max(1).reshape(WARM_UP, -1).min(0)
    return np.clip(seconds / cost_s, FEWEST, MOST).astype(int).tolist()


def late_ranks(cases: Sequence[Case], order_N: Iterable[int]) -> list[int | None]:
    """Who comes late to each call: the ranks of a case in turn, if it is one for that.

    Of a broadcast the receivers only: its source waits for nobody, so how late it was could not be told from a clock.
    """
    calls_before, late_N = Counter[int](), list[int | None]()
    for index in order_N:
        case, turn = cases[index], calls_before[index]
        first = int(case.collective == "broadcast")
        late_N.append(first + turn % (case.ranks - first) if case.late else None)
        calls_before[index] += 1
    return late_N


def time_cases(timer: Timer, cases: Sequence[Case], x: torch.Tensor, seconds: float) -> list[Timing]:
    """The median of each case's calls, which take about so many seconds."""
    calls = [make_call(case, x, timer.group) for case in cases]
    order_N = np.fromiter(turns(repetitions_for(timer, calls, seconds)), dtype=int)
    late_N = late_ranks(cases, order_N)
    gc.disable()
    times_NR2 = timer.gather([timer.time(calls[index], rank) for index, rank in zip(order_N, late_N, strict=True)])
    gc.enable()
    timings = []
    for index, case in enumerate(cases):
        seconds_N = durations(times_NR2[order_N == index], case.collective, timer.common_clock)
        timings.append(Timing(**asdict(case), median_us=float(np.median(seconds_N)) * 1e6))
    return timings


def measure(session: Session, ranks: Sequence[int], max_bytes: int, seconds: float) -> list[Timing]:
    """Timings for groups of the first 2, 4, ... ranks; complete on rank 0."""
    common_clock = session.device.type == "cpu" and _one_kernel(session)
    # V of at most max_bytes with two ranks takes an input of twice that.
    x = torch.empty(2 * max_bytes // ITEMSIZE + max(ranks), device=session.device).fill_(0)
    timings = []
    for count in ranks:
        group = dist.new_group(list(range(count)))
        if session.rank < count:
            assert isinstance(group, dist.ProcessGroup)
            cases = cases_for(count, max_bytes, session.device.type)
            timings += time_cases(Timer(session, group, common_clock), cases, x, seconds)
        dist.barrier()
    return timings


def _one_kernel(session: Session) -> bool:
    """Whether all ranks read the same monotonic clock: a kernel has one, whatever namespaces its hosts live in."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    session.store.set(f"kernel.{session.rank}", boot_id.read_text() if boot_id.exists() else platform.node())
    return len({session.store.get(f"kernel.{rank}") for rank in range(session.world_size)}) == 1


def collect(spec: ClusterSpec, ranks: Sequence[int], max_bytes: int, seconds: float) -> list[Timing] | None:
    """Start the ranks, or be one under torchrun; timings, or None on ranks that have none to tell."""
    settings = {"ranks": ranks, "max_bytes": max_bytes, "seconds": seconds}
    with tempfile.TemporaryDirectory() as folder:
        if spec.kind == "torchrun":
            return _be_rank(spec, Path(folder), settings)
        (Path(folder) / "spec.json").write_text(json.dumps({"cluster": asdict(spec), "settings": settings}))
        prepare(spec, [__name__])
        launch(spec, run_rank, folder)
        return [Timing(**told) for told in json.loads((Path(folder) / "timings.json").read_text())]


def run_rank(folder: str) -> None:
    """Rank entry: reads spec.json, rank 0 leaves timings.json."""
    spec = json.loads((Path(folder) / "spec.json").read_text())
    timings = _be_rank(ClusterSpec(**spec["cluster"]), Path(folder), spec["settings"])
    if timings is not None:
        (Path(folder) / "timings.json").write_text(json.dumps([asdict(timing) for timing in timings]))


def _be_rank(spec: ClusterSpec, folder: Path, settings: dict[str, Any]) -> list[Timing] | None:
    with connect(spec, Network("none"), folder / "device_lock") as session:
        timings = measure(session, **settings)
    return timings if session.rank == 0 else None
