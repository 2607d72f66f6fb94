"""Intervals that assume no distribution: order statistics for medians, a hierarchical bootstrap for ratios.

Shape letters: I iterations of one launch, L MoE layers (1 for whole-pass metrics), S launches, N = all iterations,
D bootstrap draws.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import quantile_test

CHUNK = 200  # draws at a time: bounds memory without leaving numpy
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def median_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """The median and its order-statistic interval (Hoefler & Belli, SC'15, rule 5).

    Too few values (fewer than 6 at 95 %) give minimum to maximum; a single one has no interval (nan).
    """
    values = np.asarray(values, dtype=float).ravel()
    if not values.size:
        raise ValueError("A median needs at least one value; there are 0.")
    if values.size == 1:
        return float(values[0]), np.nan, np.nan
    low, high = quantile_test(values, p=0.5).confidence_interval(confidence)
    if np.isnan(low) or np.isnan(high):
        low, high = values.min(), values.max()
    return float(np.median(values)), float(low), float(high)


def median_ratio(above_DNL: np.ndarray, below_DNL: np.ndarray) -> np.ndarray:
    """Ratio of the medians, layers pooled: [D]."""
    return np.median(above_DNL, axis=(-2, -1)) / np.median(below_DNL, axis=(-2, -1))


def mean_layer_ratio(above_DNL: np.ndarray, below_DNL: np.ndarray) -> np.ndarray:
    """Mean over layers of the ratio of means: [D]. The statistic of the MoEShard paper's Figures 3 and 4."""
    return (above_DNL.mean(axis=-2) / below_DNL.mean(axis=-2)).mean(axis=-1)


def ratio_interval(
    numerator: Sequence[ArrayLike],
    denominator: Sequence[ArrayLike],
    *,
    statistic: Statistic = median_ratio,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A ratio and its bootstrap interval: launches are drawn, then iterations inside each (Kalibera & Jones, ISMM'13).

    numerator, denominator: one array [I] or [I, L] for each launch; the layers of an iteration stay together. With
    equally many launches on both sides the same ones are drawn for both, because systems of one launch share its
    conditions. With one launch only iterations are drawn, and the interval says nothing about other launches.
    """
    above, below = [as_IL(launch) for launch in numerator], [as_IL(launch) for launch in denominator]
    if not above or not below:
        raise ValueError(f"A ratio needs a launch on each side; there are {len(above)} and {len(below)}.")
    ratio = statistic(np.concatenate(above)[None], np.concatenate(below)[None])[0]
    ratio_D = np.concatenate(list(bootstrap(above, below, statistic, draws, np.random.default_rng(seed))))
    low, high = np.quantile(ratio_D, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(ratio), float(low), float(high)


def as_IL(launch: ArrayLike) -> np.ndarray:
    values = np.asarray(launch, dtype=float)
    return values[:, None] if values.ndim == 1 else values


def bootstrap(
    above: list, below: list, statistic: Statistic, draws: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """The statistic of resampled data, a chunk of draws at a time."""
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        above_DS = rng.integers(len(above), size=(size, len(above)))
        below_DS = above_DS if len(below) == len(above) else rng.integers(len(below), size=(size, len(below)))
        yield statistic(resample(above, above_DS, rng), resample(below, below_DS, rng))


def resample(launches: list[np.ndarray], launch_DS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Iterations drawn with replacement inside the drawn launches: [D, N, L]."""
    count_S = np.array([len(launch_IL) for launch_IL in launches])
    first_S = np.cumsum(count_S) - count_S
    # The shortest launch decides how many: launches weigh the same, the interval is too wide rather than too narrow.
    inside_DSI = rng.random((*launch_DS.shape, count_S.min())) * count_S[launch_DS][..., None]
    row_DSI = first_S[launch_DS][..., None] + inside_DSI.astype(int)
    return np.concatenate(launches)[row_DSI.reshape(len(launch_DS), -1)]
