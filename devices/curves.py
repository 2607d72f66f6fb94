"""Measured times between their points: matrix products on a grid of shapes, transfers by their bytes."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import exp, log


@dataclass(frozen=True)
class Curve:
    """Microseconds by bytes, linear between points; beyond the last point its last slope, below the first its time."""

    points: Sequence[Sequence[float]]
    _sizes: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sizes", tuple(float(size) for size, _ in self.points))

    def us(self, num_bytes: float) -> float:
        """Microseconds of so many bytes."""
        if num_bytes <= self._sizes[0] or len(self.points) == 1:
            return float(self.points[0][1])
        after = min(bisect_right(self._sizes, num_bytes), len(self.points) - 1)
        (size, us), (next_size, next_us) = self.points[after - 1], self.points[after]
        return us + (num_bytes - size) * (next_us - us) / (next_size - size)


@dataclass(frozen=True)
class Grid:
    """Microseconds of a product [m, k] @ [k, n] at the points of three axes.

    The logarithm of the time is interpolated over the logarithms of m, n and k, which is the same as interpolating
    the logarithm of the achieved rate. Beyond an axis the rate of its last point holds; below it the time of its
    first. us_mnk: nested lists.
    """

    m: Sequence[int]
    n: Sequence[int]
    k: Sequence[int]
    us_mnk: Sequence[Sequence[Sequence[float]]]
    _logs: tuple[tuple[float, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_logs", tuple(tuple(map(log, axis)) for axis in (self.m, self.n, self.k)))

    def us(self, m: int, n: int, k: int) -> float:
        """Microseconds of one product."""
        places = [_place(axis, log(size)) for axis, size in zip(self._logs, (m, n, k), strict=True)]
        found = sum(beyond for _, _, beyond in places)
        for steps in product((0, 1), repeat=3):
            weight = 1.0
            for step, (_, share, _) in zip(steps, places, strict=True):
                weight *= share if step else 1 - share
            if weight:
                i, j, l = (low + step for step, (low, _, _) in zip(steps, places, strict=True))  # noqa: E741
                found += weight * log(self.us_mnk[i][j][l])
        return exp(found)


def _place(axis: Sequence[float], at: float) -> tuple[int, float, float]:
    """(index below, share of the way to the next, how far beyond the last) of a logarithm on an axis of logarithms."""
    if at <= axis[0]:
        return 0, 0.0, 0.0
    if at >= axis[-1]:
        return len(axis) - 1, 0.0, at - axis[-1]
    low = bisect_right(axis, at) - 1
    return low, (at - axis[low]) / (axis[low + 1] - axis[low]), 0.0
