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

On CPUs all this is measured twice: with ranks that come to the call together and with one of them 5 ms late,
in turns. Between two ranks gloo's exchange goes both ways at once only in the first case.

Sizes between those of the table are measured too but kept out: the error of the table on them is printed and stands in
the file. Uneven exchanges decide the one number `duplex`; what is left of their error stands beside the others.
"""

import argparse
import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.cuda import nccl

from clusters.launch import LaunchFailed
from clusters.network import Network
from clusters.session import ClusterSpec
from experiments.environment import describe
from experiments.machine import state
from scripts.calibration.cases import cases_for
from scripts.calibration.fit import Errors, errors_of, fitted
from scripts.calibration.timing import collect

ROOT = Path(__file__).parents[1]
QUIET_SHARE = 0.1  # of the cores busy with something else, above which a table is not worth much
TIMEOUT_S = 3600.0  # ranks outside a small group wait this long for it


def parse_bytes(text: str) -> int:
    """64M -> 67108864; at least 1K."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    size = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else 0
    if size < 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of at least 1K; write bytes or 4K, 64M, 1G")
    return size


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; name and path are filled in."""
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
    here = torch.cuda.device_count() if device == "cuda" else len(os.sched_getaffinity(0))
    launched = int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else None
    options.ranks = sorted(set(options.ranks or [launched or here]))
    check(options, here, launched)
    kind = options.backend if launched is None else "torchrun"
    spec = ClusterSpec(kind, launched or options.ranks[-1], device, TIMEOUT_S, threads=1)
    spec.check()
    return spec


def check(options: argparse.Namespace, here: int, launched: int | None) -> None:
    """Raise ValueError for options that `here` cores or GPUs, in a launch of so many ranks if any, cannot meet."""
    least, most, gpus = options.ranks[0], options.ranks[-1], options.backend == "nccl"
    if least < 2:
        devices = "GPU(s)" if gpus else "core(s)"
        raise ValueError(f"--ranks has {least}; a collective needs at least 2 (found {here} {devices})")
    if launched is not None and most > launched:
        raise ValueError(f"--ranks has {most}, but the launch has {launched} ranks")
    on_one_host = most if launched is None else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not gpus and on_one_host > here and not options.oversubscribe:
        raise ValueError(f"{on_one_host} ranks on {here} core(s) would time the scheduler; --oversubscribe allows it")
    if options.seconds <= 0:
        raise ValueError(f"--seconds is {options.seconds}; it must be positive")
    if not options.out.parent.is_dir():
        raise ValueError(f"--out is {options.out}, but there is no folder {options.out.parent}")


def announce(options: argparse.Namespace, busy_share: float) -> None:
    """How long it will take, and whether the machine is quiet enough."""
    device = "cuda" if options.backend == "nccl" else "cpu"
    cases = sum(len(cases_for(count, options.max_bytes, device)) for count in options.ranks)
    least_s = cases * options.seconds
    print(f"{options.backend}, ranks {options.ranks}: at least {least_s:.0f} s", flush=True)
    if busy_share > QUIET_SHARE:
        print(f"warning: {busy_share:.0%} of the cores are busy with something else, which the table will contain")


def source_of(options: argparse.Namespace, busy_share: float) -> str:
    """When, by which library and on which machine the network was measured."""
    machine = describe()
    device = machine["gpus"][0] if options.backend == "nccl" else f"{machine['cpu']}, {machine['cores']} cores a host"
    hosts = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    library = f"NCCL {'.'.join(map(str, nccl.version()))}" if options.backend == "nccl" else "gloo"
    crowded = ", more ranks than cores" if options.oversubscribe else ""
    return (
        f"measured {date.today()} ({library}, torch {torch.__version__}, {hosts} host(s), {device}{crowded}, "
        f"{busy_share:.0%} busy before, {platform.system()} {platform.release()})"
    )


def summary(network: Network) -> list[str]:
    """Latency and the bandwidth between the last two points of each table; of ranks that come late too."""
    lines = [f"{'collective':<15}{'ranks':>5}{'latency us':>12}{'GB/s':>8}"]
    for model, when in ((network, ""), (network.late, "  late")):
        for collective, by_ranks in (model.tables if model else {}).items():
            for ranks, table in by_ranks.items():
                (size, us), (last, last_us) = table[-2:]
                gbs = (last - size) / max(last_us - us, 0.1) / 1e3
                lines.append(f"{collective:<15}{ranks:>5}{table[0][1]:>12.1f}{gbs:>8.2f}{when}")
    return lines


def header_of(errors: Errors) -> list[str]:
    """What was measured and how good the table is: one line a collective, number of ranks and kind of check."""
    lines = [
        "Measured by scripts/calibrate_network.py: medians, made to ascend by isotonic regression.",
        "Error, predicted / measured - 1, on calls that are not in the table (uneven ones chose the duplex):",
        f"{'collective':<15}{'ranks':>5}  {'sizes':<13}{'median error':>13}{'worst':>9}  at bytes",
    ]
    for (collective, ranks, use, late), found in sorted(errors.items()):
        sizes = f"{use}, late" if late else use
        median, worst = np.median([abs(error) for error, _ in found]), max(found, key=lambda error: abs(error[0]))
        lines.append(f"{collective:<15}{ranks:>5}  {sizes:<13}{median:>13.1%}{worst[0]:>+9.1%}  {worst[1]}")
    return lines


def _node(network: Network) -> dict[str, Any]:
    target = {"_target_": "clusters.network.Network"}
    return target | {"name": network.name, "duplex": network.duplex, "tables": network.tables}


def document(network: Network, header: Sequence[str]) -> str:
    """The YAML file of a network that was measured: the header as comments, then its node."""
    node = _node(network) | ({"late": _node(network.late)} if network.late else {}) | {"source": network.source}
    body = yaml.safe_dump(node, sort_keys=False, default_flow_style=None, width=120)
    return "".join(f"# {line}\n" for line in header) + body


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print latency, bandwidth and errors, write the file."""
    options = parse(arguments)
    try:
        spec = cluster_for(options)
        busy_share = state("cpu")["busy_share"]
        if os.environ.get("RANK", "0") == "0":
            announce(options, busy_share)
        timings = collect(spec, options.ranks, options.max_bytes, options.seconds)
    except (ValueError, LaunchFailed) as error:
        print(f"calibrate_network: {error}")
        return 2
    if timings:
        network = fitted(timings, options.name, source_of(options, busy_share))
        header = header_of(errors_of(timings, network))
        options.out.write_text(document(network, header))
        print(*summary(network), *header, f"wrote {options.out}", sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
