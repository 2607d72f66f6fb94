"""Rules that turn points with intervals into what was obtained and a verdict.

`reproduced` needs intervals that exclude the opposite, `direction only` the values alone.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from analysis.labels import number, times, with_interval

REPRODUCED, DIRECTION, FAILED = "reproduced", "direction only", "not reproduced"
NOT_MEASURED, NOT_TESTABLE = "not measured", "not testable here"
# Of simulated numbers, whose error is known or not.
HOLDS, HOLDS_NOT, WITHIN_ERROR, NOT_VALIDATED = "holds", "does not hold", "within the model's error", "not validated"
TOLERANCE = 0.25
NOTHING = "–"


class Ratio(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float


Points = dict[float, Ratio]  # by the paper's x, or by encoder block
UNKNOWN = (NOTHING, NOT_MEASURED)


def grade(sure: bool, suggested: bool) -> str:
    """The verdict: reproduced, else direction only, else not reproduced."""
    return REPRODUCED if sure else DIRECTION if suggested else FAILED


def point_verdict(published: float, value: float, low: float, high: float, tolerance: float = TOLERANCE) -> str:
    """Reproduced: within 25 % (`tolerance`) or in the interval; direction only: merely the same side of 1x.

    Only an interval no wider than 2x reproduces anything: a wider one, or none, holds too much.
    """
    if np.isnan(value):
        return NOT_MEASURED
    same_side, close = (value > 1) == (published > 1), abs(value / published - 1) <= tolerance
    if same_side and high <= 2 * low and (low <= published <= high or close):
        return REPRODUCED
    return DIRECTION if same_side else FAILED


def peak_at(points: Points, x: float) -> tuple[str, str]:
    """The largest value is at x, above every other interval; direction only when it is at an inner point."""
    inner = sorted(points)[1:-1]
    if x not in inner:
        return UNKNOWN
    best = max(points, key=lambda at: points[at].value)
    sure = all(points[x].low > ratio.high for at, ratio in points.items() if at != x)
    return f"peak at {best:g}, {shown(points[best])}", grade(sure, best in inner)


def declines(points: Points, start: float, stop: float) -> tuple[str, str]:
    """Less at stop than at start."""
    if not {start, stop} <= points.keys():
        return UNKNOWN
    first, last = points[start], points[stop]
    return from_to(first, last), grade(last.high < first.low, last.value < first.value)


def grows_to(points: Points, x: float) -> tuple[str, str]:
    """Every step up to x is upwards, intervals disjoint; direction only when the last point is above the first."""
    steps = [points[at] for at in sorted(points) if at <= x]
    if x not in points or len(steps) < 2:
        return UNKNOWN
    rising = all(left.high < right.low for left, right in pairwise(steps))
    return from_to(steps[0], steps[-1]), grade(rising, steps[0].value < steps[-1].value)


def slope(points: Points, start: float, stop: float, published: float) -> tuple[str, str]:
    """Exponent of growth between two points (1: linear): within 25 % or an interval that holds the published one."""
    if not {start, stop} <= points.keys():
        return UNKNOWN
    first, last = points[start], points[stop]
    steepness = partial(np.emath.logn, stop / start)
    value, low, high = (
        steepness(b / a) for a, b in ((first.value, last.value), (first.high, last.low), (first.low, last.high))
    )
    close = abs(value / published - 1) <= TOLERANCE or (low <= published <= high and high - low < published)
    return f"growth as x^{value:.2f}", grade(bool(close), value > 0)


def slower_at(points: Points, x: float) -> tuple[str, str]:
    """Below 1x at x; direction only when the interval is not."""
    return one_point(points, x, lambda ratio: grade(ratio.high < 1, ratio.value < 1))


def faster_at(points: Points, x: float) -> tuple[str, str]:
    """Above 1x at x; direction only when the interval is not."""
    return one_point(points, x, lambda ratio: grade(ratio.low > 1, ratio.value > 1))


def ratio_at(points: Points, x: float, published: float, tolerance: float = TOLERANCE) -> tuple[str, str]:
    """See `point_verdict`."""
    return one_point(points, x, lambda ratio: point_verdict(published, *ratio, tolerance))


def at_least(points: Points, x: float, published: float) -> tuple[str, str]:
    """Not below the published value; direction only when still faster."""
    return one_point(points, x, lambda ratio: grade(ratio.low >= published, ratio.value > 1))


def highest(points: Points, published: float, tolerance: float = TOLERANCE) -> tuple[str, str]:
    """The largest of all points; see `point_verdict`."""
    if not points:
        return UNKNOWN
    return ratio_at(points, max(points, key=lambda at: points[at].value), published, tolerance)


def always_faster(points: Points) -> tuple[str, str]:
    """Above 1x at every point."""
    ratios = list(points.values())
    if not ratios:
        return UNKNOWN
    sure, suggested = (all(getattr(ratio, bound) > 1 for ratio in ratios) for bound in ("low", "value"))
    worst, best = min(ratios), max(ratios)
    return (from_to(worst, best) if len(ratios) > 1 else shown(best)), grade(sure, suggested)


def crossover(points: Points, x: float) -> tuple[str, str]:
    """Below 1x before x and above 1x from x on; direction only when the last point is above the first."""
    before, after = ([points[at] for at in sorted(points) if (at < x) == early] for early in (True, False))
    if not before or not after:
        return UNKNOWN
    sure = all(ratio.high < 1 for ratio in before) and all(ratio.low > 1 for ratio in after)
    return from_to(before[0], after[-1]), grade(sure, before[0].value < 1 < after[-1].value)


def equals(points: Points, published: float) -> tuple[str, str]:
    """A count that is the same at every point."""
    if not points:
        return UNKNOWN
    low, high = min(points.values()).value, max(points.values()).value
    return span(low, high), grade(np.allclose([low, high], published), False)


def positive(points: Points, start: float = -np.inf) -> tuple[str, str]:
    """A count above 0 at every point from `start` on; direction only when at some."""
    values = [ratio.value for at, ratio in points.items() if at >= start]
    if not values:
        return UNKNOWN
    return span(min(values), max(values)), grade(min(values) > 0, max(values) > 0)


def count_at(points: Points, x: float, published: float) -> tuple[str, str]:
    """A count within 25 % of the published one; direction only when above 0."""
    if x not in points:
        return UNKNOWN
    value = points[x].value
    return number(value), grade(abs(value / published - 1) <= TOLERANCE, value > 0)


def one_point(points: Points, x: float, verdict: Callable[[Ratio], str]) -> tuple[str, str]:
    """The ratio at x and its verdict, or that it was not measured."""
    return (shown(points[x]), verdict(points[x])) if x in points else UNKNOWN


def shown(ratio: Ratio) -> str:
    """With its interval, if it has one."""
    return with_interval(*ratio, times) if ratio.low < ratio.high else times(ratio.value)


def span(low: float, high: float) -> str:
    """Two numbers as a range, or as one where they are equal."""
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def from_to(first: Ratio, last: Ratio) -> str:
    """Two ratios with their intervals."""
    return f"{shown(first)} to {shown(last)}"


JUDGES: dict[str, Callable[..., tuple[str, str]]] = {
    judge.__name__: judge
    for judge in (
        *[peak_at, declines, grows_to, slope, slower_at, faster_at, ratio_at, at_least, highest, always_faster],
        *[crossover, equals, positive, count_at],
    )
}


def apply(claim: dict, points: Points) -> tuple[str, str]:
    """What a claim's rule says of points: the value as text, and the verdict."""
    return JUDGES[claim["judge"]](points, **last_for(claim.get("with", {}), points))


def apply_within(claim: dict, points: Points, error: float) -> tuple[str, str]:
    """What a claim's rule says of simulated points: the values as text, and whether it holds.

    Within the model's error: it does for some values that differ from these by no more than the factor 1 + error.
    """
    text, verdict = apply(claim, points)
    if verdict == NOT_MEASURED:
        return text, verdict
    factors = (1 / (1 + error), 1.0, 1 + error)
    moved = [
        {x: Ratio(*[ratio.value * factor] * 3) for (x, ratio), factor in zip(points.items(), by, strict=True)}
        for by in product(factors, repeat=len(points))
    ]
    held = {apply(claim, each)[1] == REPRODUCED for each in moved}
    return text, WITHIN_ERROR if len(held) > 1 else HOLDS if held == {True} else HOLDS_NOT


def last_for(numbers: dict, points: Points) -> dict:
    """x = -1 is the last layer, whichever that is."""
    return numbers | {"x": max(points, default=-1)} if numbers.get("x") == -1 else numbers
