"""Measured times between the points where they were measured: plain Python, for a million questions."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any

Points = Sequence[Sequence[float]]


class Curve:
    """y of x by linear interpolation between ascending points; beyond the last the slope of the last two."""

    def __init__(self, points: Points) -> None:
        self._x, self._y = [float(x) for x, _ in points], [float(y) for _, y in points]
        assert len(self._x) > 1 and self._x == sorted(set(self._x)), points

    def at(self, x: float) -> float:
        """y; below the first point its own."""
        if x <= self._x[0]:
            return self._y[0]
        i = min(bisect_right(self._x, x), len(self._x) - 1) - 1
        (x0, x1), (y0, y1) = self._x[i : i + 2], self._y[i : i + 2]
        return y0 + (x - x0) * (y1 - y0) / (x1 - x0)


class Grid:
    """Seconds of a product [m, k] @ [k, n] from a grid {m, n, k: sizes, us: [m][n][k]} of microseconds.

    Times are interpolated in the logarithms of time and sizes, so that they ascend wherever those of the grid do. A
    size below the grid costs what the smallest does; one beyond it as much more as it is larger.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._axes = [_Axis(table[letter]) for letter in "mnk"]
        self._log_s = [[[log(us * 1e-6) for us in by_k] for by_k in by_n] for by_n in table["us"]]

    def seconds(self, m: int, n: int, k: int) -> float:
        """Seconds of one product."""
        (i, u, over_m), (j, v, over_n), (h, w, over_k) = (
            axis.place(size) for axis, size in zip(self._axes, (m, n, k), strict=True)
        )

        def along_k(i: int, j: int) -> float:
            times = self._log_s[i][j]
            return times[h] + w * (times[h + 1] - times[h])

        def along_n(i: int) -> float:
            first = along_k(i, j)
            return first + v * (along_k(i, j + 1) - first)

        first = along_n(i)
        return exp(first + u * (along_n(i + 1) - first)) * over_m * over_n * over_k


class _Axis:
    """The sizes of one dimension of a grid."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes, self._logs = list(sizes), [log(size) for size in sizes]

    def place(self, size: int) -> tuple[int, float, float]:
        """(i, share, over): between sizes i and i + 1 by so much of their logarithms; how often the last one."""
        if size >= self._sizes[-1]:
            return len(self._sizes) - 2, 1.0, size / self._sizes[-1]
        if size <= self._sizes[0]:
            return 0, 0.0, 1.0
        i = bisect_right(self._sizes, size) - 1
        return i, (log(size) - self._logs[i]) / (self._logs[i + 1] - self._logs[i]), 1.0
