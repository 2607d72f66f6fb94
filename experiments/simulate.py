"""What a launch of simulated ranks does: each cell alone on empty devices, its rows as measured cells have them.

Nothing is checked against the dense model, because activations have no values: a system is right because `make
conformance` and every emulated or measured cell say so. Marks cost nothing and nothing is disturbed, so one pass gives
the whole forward pass and its layers and sections.
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psutil
import torch

from clusters.launch import LaunchFailed
from clusters.session import Session
from clusters.simulated import Simulated
from clusters.simulated.timeline import Event, Timeline
from experiments.ceilings import modelled_rate, near_rate
from experiments.configuration import described_device, instantiate, is_node, layer_shape
from experiments.recorder import Span
from experiments.records import Launch, Tier, Workload
from experiments.worker import follow_parent
from systems.base import System
from systems.engines.base import DTYPES
from systems.engines.declared import DECLARED

SAID = "said.log"  # what the process of a launch prints
TRIM_S = 2
LARGE = 8192  # side of the matrix product that planners take a device's rate from


class Seen(NamedTuple):
    """What one rank leaves of one cell; events and spans if they are kept."""

    samples: list[dict[str, Any]]
    routing: list[dict[str, Any]]
    collectives: list[dict[str, Any]]
    inputs: dict[str, str]
    events: list[Event]
    spans: list[Span]


def launch_simulation(launch: Launch) -> None:
    """Simulate the cells of a launch in a new process and wait; LaunchFailed where that dies or takes too long.

    A process of its own, because libraries keep process groups, and these have one number of ranks. Forked from one
    that has imported everything, it costs less than a cell.
    """
    process = multiprocessing.get_context("forkserver").Process(target=_simulate_alone, args=(launch,), daemon=True)
    process.start()
    process.join(timeout_s := launch.workload.cluster.timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
        raise LaunchFailed("timeout", f"not simulated within {timeout_s} s: it was stopped", _said(launch))
    if process.exitcode:
        raise LaunchFailed("failed", f"its process died with exit code {process.exitcode}", _said(launch))


def _simulate_alone(launch: Launch) -> None:
    """The only thing that a process does; what it says is kept in the folder of the launch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which stores what is under way and ends
    threading.Thread(target=follow_parent, args=(launch.parent,), daemon=True).start()
    if sys.platform == "linux":  # a cell that would take more than its part of this machine's memory is a row
        share = psutil.virtual_memory().total // len(os.sched_getaffinity(0))
        resource.setrlimit(resource.RLIMIT_DATA, (share, share))
    said = os.open(Path(launch.folder) / SAID, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(said, stream)
    threading.Thread(target=_give_back, daemon=True).start()
    simulate(launch)


def _give_back() -> None:
    """Return freed memory to the system now and then: many threads' routes would leave twice as much as is in use."""
    with contextlib.suppress(OSError, AttributeError):  # a C library without it
        trim = ctypes.CDLL(None).malloc_trim
        while True:
            time.sleep(TRIM_S)
            trim(0)


def _said(launch: Launch) -> str:
    path = Path(launch.folder) / SAID
    return path.read_text(errors="replace")[-8000:] if path.exists() else ""


def simulate(launch: Launch) -> None:
    """Leave outcome.json and the tables of the cells of one launch in its folder."""
    folder, failed, seen = Path(launch.folder), {}, {}
    for cell in launch.cells:
        try:
            seen[cell] = simulate_cell(launch, cell)
        except Exception as error:
            kind = "oom" if isinstance(error, torch.OutOfMemoryError) else "failed"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            failed[cell] = {"state": kind, "reason": reason, "traceback": traceback.format_exc()}
    for name in ("samples", "routing", "collectives"):
        frames = [_table(ranks, name).assign(cell=cell) for cell, ranks in seen.items()]
        (pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()).to_parquet(folder / f"{name}.parquet")
    iterations = launch.workload.tier.rounds
    schedule = {"iterations": iterations, "turn": 1}
    shared = {
        "schedule": dict.fromkeys(seen, schedule),
        "ceilings": ceilings_of(launch.workload),
        "seconds": {},
        "ranks_cpu_s": 0.0,
    }
    inputs = {
        cell: {name: [one.inputs[name] for one in ranks] for name in ranks[0].inputs} for cell, ranks in seen.items()
    }
    outcome = {"correctness": dict.fromkeys(seen), "inputs": inputs, "failed": failed}
    (folder / "outcome.json").write_text(json.dumps(shared | outcome))


def simulate_cell(launch: Launch, cell: str, *, keep_events: bool = False) -> list[Seen]:
    """One cell on all ranks; raises what its first rank that fails raises."""
    cluster = cluster_of(launch.workload)

    def program(session: Session, timeline: Timeline) -> Seen:
        return _simulate_rank(launch, cell, session, timeline)

    return cluster.run(program, keep_events=keep_events)


def cluster_of(workload: Workload) -> Simulated:
    """The described cluster of a workload."""
    device, world_size, network = described_device(workload), workload.cluster.world_size, workload.network
    joined = instantiate(network, "network") if is_node(network) else device.network(world_size)
    return Simulated(device, joined, world_size, workload.precision, DECLARED)


def ceilings_of(workload: Workload) -> dict[str, Any]:
    """What the described device can do at most, as `experiments.ceilings` measures it on a real one."""
    cluster, precision = cluster_of(workload), workload.precision
    num_bytes, shape = 1 << 30, layer_shape(workload)
    rank_bytes = shape.max_tokens * shape.d_model * DTYPES[precision].itemsize
    link = modelled_rate(cluster.network, cluster.world_size, rank_bytes)
    return {
        "matmul_flops_per_s": 2 * LARGE**3 / cluster.device.matmul_s(1, LARGE, LARGE, LARGE, precision),
        "copy_bytes_per_s": num_bytes / cluster.device.memory_s(num_bytes),
        "operation_us": cluster.device.host.operation_us,
        "link_bytes_per_s": link if link < float("inf") else None,
        **near_rate(cluster.network, cluster.world_size, rank_bytes),
        "dtype": str(DTYPES[precision]).removeprefix("torch."),
        "threads": 1,
        "scheduling": "simulated",
    }


def _simulate_rank(launch: Launch, cell: str, session: Session, timeline: Timeline) -> Seen:
    from experiments import evidence  # transformers costs the parent seconds
    from experiments.bench import Bench

    workload, tier = launch.workload, launch.workload.tier
    bench = Bench(workload, session, launch.cache_dir, ceilings_of(workload))
    bench.add(cell, launch.cells[cell])
    bench.built()
    with torch.no_grad():  # where composite operations come apart by themselves, as they do not in inference mode
        for iteration in untimed(bench.systems[cell].values(), tier):
            bench.program.prefetch(iteration)
            bench.timed_forward(cell, iteration, phase="warmup")
        bench.recorder.observing = True
        for iteration in range(tier.rounds):
            bench.program.prefetch(iteration)
            bench.timed_forward(cell, iteration, phase="measure")
        bench.recorder.observing = False
    counted, routed = evidence.accounts(bench, cell, {"measure": range(tier.rounds)})
    seen = [row for row in bench.recorder.rows() if row["phase"] == "measure" or row["metric"] == "ttft_ms"]
    rows = [row if row["metric"] == "ttft_ms" else {**row, "phase": "instrumented"} for row in seen]
    memory = {"metric": "peak_memory_bytes", "value": float(timeline.peak_bytes), "unit": "bytes", "phase": "measure"}
    rows += [{"cell": cell, "iteration": 0, **memory}]
    inputs = evidence.inputs(bench, [cell])[cell]
    spans = bench.recorder.spans() if timeline.keep_events else []
    return Seen(rows + counted, routed, bench.recorder.collectives(), inputs, timeline.events, spans)


def untimed(systems: Iterable[System], tier: Tier) -> range:
    """The iterations before those that are timed: none where no system is changed by them."""
    return range(tier.rounds, tier.rounds + tier.warmup * any(system.stateful for system in systems))


def _table(ranks: list[Seen], name: str) -> pd.DataFrame:
    frames = [pd.DataFrame(getattr(seen, name)).assign(rank=rank) for rank, seen in enumerate(ranks)]
    return pd.concat(frames, ignore_index=True)
