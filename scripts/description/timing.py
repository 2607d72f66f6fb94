"""How long a call takes on the machine at hand: medians, on warm caches."""

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch

FEWEST, BLOCK_S = 3, 2e-4  # blocks of calls that a median has at least; how long a block is at least
AHEAD_CYCLES = 2_000_000  # a millisecond or so in which the host queues a block, so that launching does not show
Call = Callable[[], Any]


def seconds_of(call: Call, device: torch.device, budget_s: float) -> float:
    """The median over blocks of calls, which fill the budget; of a GPU its own time, without launching."""
    call()
    once_s = _block_s(call, 1, device)
    calls = min(200, max(1, round(BLOCK_S / max(once_s, 1e-7))))
    blocks, end = list[float](), perf_counter() + budget_s
    while len(blocks) < FEWEST or perf_counter() < end:
        blocks.append(_block_s(call, calls, device))
    return median(blocks) / calls


def issue_s(call: Call, device: torch.device) -> float:
    """Seconds until the host goes on, the least of ten blocks: what is taken off others must not be too much.

    A GPU is kept busy meanwhile.
    """
    calls, blocks = 100, []
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda._sleep(100 * AHEAD_CYCLES)
        start = perf_counter()
        for _ in range(calls):
            call()
        blocks.append((perf_counter() - start) / calls)
    return min(blocks)


def _block_s(call: Call, calls: int, device: torch.device) -> float:
    if device.type != "cuda":
        start = perf_counter()
        for _ in range(calls):
            call()
        return perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(AHEAD_CYCLES)
    first.record()
    for _ in range(calls):
        call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) * 1e-3
