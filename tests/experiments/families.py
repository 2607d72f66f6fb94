"""What ranks do in `test_families`: every system in every decoder, all in one set of processes."""

import json
from pathlib import Path
from typing import Any

import torch

from clusters.network import Network
from clusters.session import ClusterSpec, Session, connect
from experiments.bench import Bench
from experiments.configuration import find_class, options
from experiments.oracle import verify
from experiments.records import Member, Node, Workload, read
from experiments.schedule import iterations_of
from systems.collectives import all_gather

CEILINGS = {"matmul_flops_per_s": 1e11, "link_bytes_per_s": 1e9}  # planners weigh by these


def run_families(path: str) -> None:
    """Entry point of a rank: all systems on all workloads; rank 0 leaves found.json beside the file."""
    told = json.loads(Path(path).read_text())
    folder = Path(path).parent
    with connect(ClusterSpec(**told["cluster"]), Network("none"), folder / "device_lock") as session:
        found = {
            name: _compared(read(Workload, workload), told["systems"], told["cache_dir"], session)
            for name, workload in told["workloads"].items()
        }
    if session.rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


@torch.inference_mode()
def _compared(workload: Workload, systems: dict[str, Any], cache_dir: str, session: Session) -> dict[str, Any]:
    """Of each system: its layers' largest error and the whole pass's, over all ranks, or why it was refused."""
    bench = Bench(workload, session, cache_dir, CEILINGS)
    refused = {}
    for name, node in systems.items():
        kind = find_class(node)
        try:
            kind.check(bench.program.shape, session.world_size, **kind.every_option(**options(node, "system")))
            bench.add(name, Member(Node(node), "loop"))
        except ValueError as refusal:
            refused[name] = {"refused": str(refusal)}
    program, iteration = bench.program, iterations_of(workload.tier)["warmup"].start
    program.prefetch(iteration)
    expected_BLD = program.forward(program.references, program.start(iteration), iteration)
    return refused | {name: _errors(bench, name, iteration, expected_BLD) for name in bench.systems}


def _errors(bench: Bench, name: str, iteration: int, expected_BLD: torch.Tensor) -> dict[str, Any]:
    """The layers by themselves, and then the same pass once more: what a system remembers may not change it."""
    layers = verify(bench, name)
    found_BLD = bench.timed_forward(name, iteration, phase="measure")
    whole = (found_BLD - expected_BLD).abs().max() / expected_BLD.abs().max()
    worst = float(all_gather(whole.view(1), bench.session.group).max())
    return {"layers": layers, "whole": worst, "shape": list(found_BLD.shape)}
