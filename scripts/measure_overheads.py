"""What the harness itself costs: per collective, per forward pass of the end-to-end pass, and to start ranks.

    python -m scripts.measure_overheads [--world-size 4]

Network `none`, all-gathers of 4 KB. "in all" is the emulated time that one costs a rank; "ours" is the part of it
that the emulator spends: ending the segment, and from the start of the next one back to the caller.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from clusters import emulated
from clusters.clocks import HostClock, VirtualClock
from clusters.device_lock import DeviceLock
from clusters.launch import launch, prepare
from clusters.network import Network
from clusters.session import ClusterSpec
from experiments.recorder import Recorder
from experiments.worker import PRELOAD
from scripts.description.timing import CACHES_BYTES
from systems.collectives import all_gather

ITERATIONS = 400
RANKS, LAUNCHES = 4, 3  # of the cluster on which `collective_us` is measured: as many ranks as the paper has


class TracedClock(VirtualClock):
    """Notes when a segment was asked to end, and when the next one began."""

    ending_s = resumed_s = 0.0

    def hold(self) -> float:
        start = time.perf_counter()
        held = super().hold()
        self.ending_s = time.perf_counter() - start
        return held

    def _resume(self, after) -> None:
        super()._resume(after)
        self.resumed_s = time.perf_counter()


def time_rank(folder: str, evicted: str = "") -> None:
    """Rank entry: leaves times.<rank>.json: when it was connected, and rows of [in all, ours] in microseconds.

    evicted: not empty where every collective is to meet caches that something large has used, as in a program.
    """
    torch.set_num_threads(1)
    store, rank, world_size = next(dist.rendezvous("env://"))
    clock = TracedClock(DeviceLock(Path(folder) / "device_lock", rank, world_size), HostClock())
    emulated.register(clock, Network("none"))
    dist.init_process_group(emulated.BACKEND, store=store, rank=rank, world_size=world_size)
    assert dist.group.WORLD is not None
    dist.barrier()
    connected = time.time()
    x, times, large = torch.ones(1000), [], torch.zeros(CACHES_BYTES // 4 if evicted else 1)
    with clock.running():
        for _ in range(ITERATIONS):
            large.add_(1.0)
            start = clock.mark()
            all_gather(x, dist.group.WORLD)
            returned_s = time.perf_counter()
            ours_s = clock.ending_s + returned_s - clock.resumed_s
            times.append([clock.seconds(start, clock.mark()) * 1e6, ours_s * 1e6])
    (Path(folder) / f"times.{rank}.json").write_text(json.dumps({"connected": connected, "times": times}))
    dist.destroy_process_group()


def time_ranks(cluster: ClusterSpec, *arguments: str) -> list[dict]:
    """What `time_rank` left of each rank of one launch."""
    with tempfile.TemporaryDirectory() as folder:
        launch(cluster, time_rank, folder, *arguments)
        return [json.loads((Path(folder) / f"times.{rank}.json").read_text()) for rank in range(cluster.world_size)]


def typical_us(ranks: list[dict]) -> np.ndarray:
    """[in all, ours] of the slowest rank: medians over iterations, in microseconds."""
    return np.median(np.max([rank["times"] for rank in ranks], axis=0)[50:], axis=0)


def collective_us() -> float:
    """What a collective costs an emulated rank of this machine in the middle of a program, beside its transfer.

    The median of launches, which differ by a third.
    """
    cluster = ClusterSpec("emulated", RANKS)
    prepare(cluster, [*PRELOAD, "scripts.measure_overheads"])
    launches = [typical_us(time_ranks(cluster, "evicted"))[0] for _ in range(LAUNCHES)]
    return float(np.median(launches))


def observer_us(num_layers: int, sections: int = 5) -> float:
    """Microseconds that recording adds to one forward pass of the end-to-end pass: its marks and idle spans."""
    recorder = Recorder(HostClock(), lambda: None)
    start = time.perf_counter()
    for iteration in range(ITERATIONS):
        with recorder.iteration(cell="", iteration=iteration, phase="measure", order=0):
            for layer in range(num_layers):
                with recorder.layer(layer):
                    for _ in range(sections):
                        with recorder.span("experts"):
                            pass
    return (time.perf_counter() - start) / ITERATIONS * 1e6


def main() -> None:
    """Five launches; prints medians over iterations of the slowest rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world-size", type=int, default=4)
    world_size = parser.parse_args().world_size
    for num_layers in (2, 6):
        print(f"end-to-end pass: recording costs {observer_us(num_layers):.0f} us with {num_layers} MoE layers")
    cluster = ClusterSpec("emulated", world_size)
    prepare(cluster, [*PRELOAD, "scripts.measure_overheads"])
    for number in range(5):
        start = time.time()
        ranks = time_ranks(cluster)
        connected_s = max(rank["connected"] for rank in ranks) - start
        in_all, ours = typical_us(ranks)
        print(
            f"launch {number}: ranks connected after {connected_s:.1f} s; "
            f"collective {in_all:.0f} us in all, {ours:.0f} us ours"
        )


if __name__ == "__main__":
    from scripts import measure_overheads  # ranks cannot import a function of the main module

    measure_overheads.main()
