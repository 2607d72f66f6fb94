"""Upper bounds of the machine, measured in the launch that they are held against: matrix product, copy and link."""

from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.benchmark import Timer

from clusters.clocks import VirtualClock
from clusters.network import NetworkModel
from clusters.session import Session, scheduling
from systems.collectives import all_to_all

# Large enough to be compute or memory bound, small enough for a tenth of a second: (matrix side, bytes copied).
SIZES = {"cpu": (1024, 1 << 26), "cuda": (8192, 1 << 30)}
CORE_SIDE = 512  # a product of milliseconds, so that some fit between the turns that a busy core gives to others
SECONDS = 0.1
ISSUED = 200  # small operations, by which the host is timed
BUSY_CYCLES = 20_000_000  # ten milliseconds or so of a GPU, in which its host issues them
LINK_BYTES = {"cpu": 1 << 22, "cuda": 1 << 26}  # so that latency, which noise can exceed, need not be taken off


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The best of repeated runs on this rank alone, with its threads; a copy counts bytes read and written."""
    num_bytes = SIZES[device.type][1]
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s("target.copy_(source)", SECONDS, target=target, source=source)
    return {
        "matmul_flops_per_s": _matmul_flops_per_s(device, dtype, SIZES[device.type][0], SECONDS),
        "copy_bytes_per_s": 2 * num_bytes / copy_s,
        "operation_us": operation_us(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "scheduling": scheduling(),
    }


def operation_us(device: torch.device) -> float:
    """Microseconds in which the host issues a small operation: hosts differ from launch to launch."""
    x = torch.zeros(4, 4, device=device)
    x.neg()
    if device.type == "cuda":  # which works off the operations later
        torch.cuda.synchronize(device)
        torch.cuda._sleep(BUSY_CYCLES)
    start = perf_counter()
    for _ in range(ISSUED):
        x.neg()
    return 1e6 * (perf_counter() - start) / ISSUED


def core_flops_per_s(dtype: torch.dtype, threads: int, seconds: float = SECONDS) -> float:
    """FLOP/s of a large matrix product with so many threads of this machine's CPU, the best within `seconds`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _matmul_flops_per_s(torch.device("cpu"), dtype, CORE_SIDE, seconds)
    finally:
        torch.set_num_threads(before)


def _matmul_flops_per_s(device: torch.device, dtype: torch.dtype, side: int, seconds: float) -> float:
    a, b, c = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))  # zeros would be faster
    return 2 * side**3 / _best_s("torch.mm(a, b, out=c)", seconds, a=a, b=b, c=c)


def measure_link(session: Session, network: NetworkModel, num_bytes: int) -> float:
    """Bytes/s of a rank that sends num_bytes to the others; inf where it sends to nobody.

    By the network model, latency apart, where the cluster is emulated; else the best of repeated exchanges of at least
    LINK_BYTES, which all ranks make, latency included.
    """
    if isinstance(session.clock, VirtualClock):
        return modelled_rate(network, session.world_size, num_bytes)
    if session.world_size == 1:
        return float("inf")
    return _measured_rate(session, max(num_bytes, LINK_BYTES[session.device.type]))


def modelled_rate(network: NetworkModel, ranks: int, num_bytes: int) -> float:
    """Bytes/s of a rank that sends num_bytes to the others, latency apart; inf where there are none."""
    if ranks == 1:
        return float("inf")

    def seconds(sent: int) -> float:
        sent_GG = np.full((ranks, ranks), sent / (ranks - 1)) * ~np.eye(ranks, dtype=bool)
        return network.seconds("all_to_all", network.volumes("all_to_all", sent_GG, range(ranks)), ranks)

    latency_s, exchange_s = seconds(ranks - 1), seconds(num_bytes)
    return num_bytes / (exchange_s - latency_s) if exchange_s > latency_s else float("inf")


def near_rate(network: NetworkModel, ranks: int, num_bytes: int) -> dict[str, Any]:
    """ranks_per_node and near_bytes_per_s, if ranks are on several modelled nodes: what one sends within its own."""
    near = network.ranks_per_node
    if near is None or ranks <= near:
        return {}
    return {"ranks_per_node": near, "near_bytes_per_s": modelled_rate(network, near, num_bytes) if near > 1 else None}


def _measured_rate(session: Session, num_bytes: int) -> float:
    ranks, clock = session.world_size, session.clock
    sent = torch.zeros(ranks, num_bytes // (ranks - 1), dtype=torch.uint8, device=session.device)

    def exchange_s() -> float:
        dist.barrier(group=session.group)
        start = clock.mark()
        all_to_all(sent, session.group)
        return clock.seconds(start, clock.mark())

    return num_bytes / min(exchange_s() for _ in range(5))


def _best_s(statement: str, seconds: float, **names: Any) -> float:
    timer = Timer(statement, globals={"torch": torch, **names}, num_threads=torch.get_num_threads())
    timer.timeit(1)
    return min(timer.blocked_autorange(min_run_time=seconds).times)
