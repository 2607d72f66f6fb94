"""How long a call takes on the machine at hand: medians, with caches as a program would find them."""

from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch

FEWEST, BLOCK_S = 3, 2e-4  # blocks of calls that a median has at least; how long a block is at least
CACHES_BYTES = 1 << 25  # what other operations use meanwhile: about what a core of a server has of its caches
MOST_COPIES = 64  # of operands, so that those of small operations stay in a cache, as in a program
TOUCHED_BYTES = 1 << 16  # of a first operand that is written again before each call
BURST = 10  # operations of a program that follow one another before something large evicts them
AHEAD_CYCLES = 2_000_000  # a millisecond or so in which the host queues a block, so that launching does not show
ISSUE_BLOCKS, ISSUE_CALLS = 10, 100
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


def in_program_s(call: Callable[..., Any], operands: Sequence[Any], budget_s: float) -> float:
    """Median seconds of call(*operands) on a CPU as one operation of a program.

    The first operand is what the operation before has just written; the others and the output were last used when
    everything else was, so that large ones are in no cache.
    """
    num_bytes = sum(one.nbytes for one in operands if isinstance(one, torch.Tensor))
    copies = min(MOST_COPIES, max(1, CACHES_BYTES // max(1, num_bytes)))
    pool = deque(
        tuple(one.clone() if isinstance(one, torch.Tensor) else one for one in operands) for _ in range(copies)
    )
    outputs = deque[Any](maxlen=copies)
    touched = pool[0][0] if pool[0] else None
    singly = isinstance(touched, torch.Tensor) and touched.nbytes >= TOUCHED_BYTES

    def block_s(calls: int) -> float:
        pool.rotate(calls)
        if singly:
            pool[0][0].mul_(1.0)
        turns = list(pool)[:calls]
        start = perf_counter()
        for own in turns:
            outputs.append(call(*own))
        return perf_counter() - start

    once_s = block_s(1)
    calls = 1 if singly else min(copies, max(1, round(BLOCK_S / max(once_s, 1e-7))))
    blocks, end = list[float](), perf_counter() + budget_s
    while len(blocks) < FEWEST or perf_counter() < end:
        blocks.append(block_s(calls) / calls)
    return median(blocks)


def issue_in_program_s(calls: Sequence[Call], budget_s: float) -> float:
    """Median seconds of a small operation on a CPU; every BURST of them meet caches that others used."""
    used, bursts, end = torch.zeros(CACHES_BYTES // 4), list[float](), perf_counter() + budget_s
    while len(bursts) < FEWEST or perf_counter() < end:
        used.add_(1.0)
        start = perf_counter()
        for i in range(BURST):
            calls[i % len(calls)]()
        bursts.append((perf_counter() - start) / BURST)
    return median(bursts)


def issue_s(calls: Sequence[Call], device: torch.device) -> float:
    """Seconds until the host goes on, calls in turn.

    Of a CPU the least of ten blocks: what is taken off others must not be too much. Of a GPU, which is kept busy
    meanwhile, the median.
    """
    blocks = list[float]()
    for _ in range(ISSUE_BLOCKS):
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda._sleep(ISSUE_CALLS * AHEAD_CYCLES)
        start = perf_counter()
        for i in range(ISSUE_CALLS):
            calls[i % len(calls)]()
        blocks.append((perf_counter() - start) / ISSUE_CALLS)
    return median(blocks) if device.type == "cuda" else min(blocks)


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
