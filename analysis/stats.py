"""Intervals whose units are independent: launches where there are several, blocks of iterations inside a single one.

Shape letters: I iterations of one launch, L MoE layers (1 for whole-pass metrics), S launches. Iterations of a launch
are neighbours, not repetitions, so they are never the units of a t interval. docs/statistics.md has the reasons and
the simulated coverage of the alternatives.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import quantile_test, t

Statistic = Callable[[np.ndarray, np.ndarray], float]


class Floor(NamedTuple):
    """What two runs of one and the same system differ by: a fraction (0.02 is 2 %), from so many pairs."""

    value: float
    n_pairs: int


def median_of(values: ArrayLike) -> float:
    """The median over iterations of the median over layers, of values [I] or [I, L]."""
    return float(np.median(per_iteration(values)))


def per_iteration(values: ArrayLike) -> np.ndarray:
    """[I, L] to [I]: layers of one iteration share its conditions, so they count as one observation."""
    return np.median(as_IL(values), axis=1)


def median_interval(launches: Sequence[ArrayLike], confidence: float = 0.95) -> tuple[float, float, float]:
    """A median and its interval from one array [I] or [I, L] for each launch.

    One launch: the order-statistic interval over its iterations (Hoefler & Belli, SC'15, rule 5), minimum to maximum
    where there are too few (fewer than 6 at 95 %), none (nan) for a single one. Several launches: the geometric mean of
    their medians with `t_interval`. Raises ValueError without a value.
    """
    values = [per_iteration(launch) for launch in launches]
    if not values or not min(map(len, values)):
        raise ValueError(f"A median needs at least one value in each launch; there are {[len(v) for v in values]}.")
    if len(values) > 1:
        return t_interval([np.median(launch_I) for launch_I in values], confidence=confidence)
    return order_statistic_interval(values[0], confidence)


def order_statistic_interval(values_I: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Median and interval of independent values; see `median_interval`."""
    if len(values_I) == 1:
        return float(values_I[0]), np.nan, np.nan
    low, high = quantile_test(values_I, p=0.5).confidence_interval(confidence)
    if np.isnan(low) or np.isnan(high):
        low, high = values_I.min(), values_I.max()
    return float(np.median(values_I)), float(low), float(high)


def t_interval(
    units: Sequence[float], centre: float | None = None, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Student's interval from independent units, on a log scale where all are above 0: times vary by factors.

    centre: the estimate, where it is not the units' own mean. With two units it is wide (t = 12.7), because two say
    little about how much units vary; with one there is none (nan).
    """
    values = np.asarray(units, dtype=float)
    to, back = (np.log, np.exp) if (values > 0).all() else (np.asarray, np.asarray)
    middle = to(values).mean() if centre is None else to(centre)
    if len(values) < 2:
        return float(back(middle)), np.nan, np.nan
    error = np.std(to(values), ddof=1) / np.sqrt(len(values))
    half = t.ppf((1 + confidence) / 2, len(values) - 1) * error
    return float(back(middle)), float(back(middle - half)), float(back(middle + half))


def median_ratio(above_IL: np.ndarray, below_IL: np.ndarray) -> float:
    """Ratio of the medians."""
    return median_of(above_IL) / median_of(below_IL)


def mean_layer_ratio(above_IL: np.ndarray, below_IL: np.ndarray) -> float:
    """Mean over layers of the ratio of means. The statistic of the MoEShard paper's Figures 3 and 4."""
    return float((above_IL.mean(axis=0) / below_IL.mean(axis=0)).mean())


def ratio_interval(
    numerator: Sequence[ArrayLike],
    denominator: Sequence[ArrayLike],
    *,
    statistic: Statistic = median_ratio,
    block: tuple[int, int] = (5, 5),
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """A ratio and its interval, from one array [I] or [I, L] for each launch that both sides have.

    Both sides of a launch share its conditions, so each launch gives one ratio. Several launches: the geometric mean of
    their ratios with `t_interval`. One launch: the turns that both sides took, each of so many consecutive iterations
    (`block`, of numerator and denominator), are the units (batch means), and the interval says nothing of other
    launches.
    Raises ValueError unless both sides have the same number of launches, at least one.
    """
    above, below = [as_IL(launch) for launch in numerator], [as_IL(launch) for launch in denominator]
    if not above or len(above) != len(below):
        raise ValueError(f"A ratio needs the same launches on both sides; there are {len(above)} and {len(below)}.")
    if len(above) > 1:
        ratios = [statistic(*pair) for pair in zip(above, below, strict=True)]
        return t_interval(ratios, confidence=confidence)
    pairs = zip(blocks(above[0], block[0]), blocks(below[0], block[1]), strict=False)
    return t_interval([statistic(*pair) for pair in pairs], statistic(above[0], below[0]), confidence=confidence)


def blocks(values_IL: np.ndarray, block: int) -> list[np.ndarray]:
    """Consecutive iterations in groups of `block`, the rest in the last; single iterations where that leaves one."""
    count = len(values_IL) // block
    return np.array_split(values_IL, count if count > 1 else len(values_IL))


def as_IL(launch: ArrayLike) -> np.ndarray:
    """Values [I] or [I, L] as [I, L]."""
    values = np.asarray(launch, dtype=float)
    return values[:, None] if values.ndim == 1 else values


def noise_floor_of(ratios: Sequence[float], share: float = 0.95) -> Floor:
    """The `share` quantile of |log ratio| over A/A pairs, rounded up to a pair: the largest of fewer than 20.

    What is left of a ratio when nothing differs; an effect that small is not claimed.
    """
    spread = np.quantile(np.abs(np.log(ratios)), share, method="higher")
    return Floor(float(np.expm1(spread)), len(ratios))


def outside(low: float, high: float, floor: Floor | None) -> bool:
    """Whether a ratio's interval has nothing in common with 1x +- the floor; False without interval or floor."""
    if floor is None:
        return False
    return bool(low > 1 + floor.value or high < 1 / (1 + floor.value))
