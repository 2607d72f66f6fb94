"""In which order the systems of a point take turns."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from scipy.stats import quantile_test

PROFILED = 4  # batches that placements are made from beforehand; their tokens follow those of the last phase


def iterations_of(tier: dict[str, Any]) -> dict[str, range]:
    """The iterations of each phase: no two share one, so that nothing kept from one phase can serve another.

    The first forward pass, which is compared with the dense model, is the first of warmup, which is never empty here.
    """
    ranges, start = {}, 0
    lengths = {"measure": tier["max_iterations"], "instrumented": tier["instrumented"], "warmup": tier["warmup"] + 1}
    for phase, length in lengths.items():
        ranges[phase] = range(start, start + length)
        start += length
    return ranges


def interleave(cells: list[str], iterations: range, block: int, seed: int) -> Iterator[list[tuple[str, range]]]:
    """Rounds of blocks of iterations, [A B C] [C B A] ...: every system runs each block before the next round.

    The first order is drawn from the seed and then reversed at each round, so that slow drift of the machine meets
    all systems alike.
    """
    order = sorted(cells)
    random.Random(seed).shuffle(order)
    for start in range(0, len(iterations), block):
        yield [(cell, iterations[start : start + block]) for cell in order]
        order.reverse()


def is_steady(values: Sequence[float], target: float) -> bool:
    """Whether the 95 % order-statistic interval of the median is within `target` (a share) of it on both sides."""
    interval = quantile_test(values, p=0.5).confidence_interval(0.95)
    middle = sorted(values)[len(values) // 2]
    # Too few values give no interval (nan), and every comparison with nan is false.
    return middle * (1 - target) <= interval.low and interval.high <= middle * (1 + target)
