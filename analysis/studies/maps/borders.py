"""Where the border between two systems runs on a map: from which x on the other of them is faster.

Shape letters: X points along x.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.frames import select
from analysis.series import launch_pairs, time_ratio
from analysis.stats import Floor, t_interval
from analysis.studies.maps.winners import told_apart, winners

CROSSES, ALWAYS, UNCLEAR, SEVERAL, NOT_MEASURED = "crosses", "always", "unclear", "several", "not measured"
WIDE = 10  # an axis that spans more than this factor is interpolated in its logarithm
QUESTION = ("ep", "moeshard")  # plain expert parallelism or sharding


@dataclass(frozen=True)
class Border:
    """Which of two systems is faster along one y, and from which x on it is the other one.

    state: crosses; always (no zero); unclear (no point told apart); several; not measured (fewer than two x).
    below, above: who is faster at the lowest and at the highest x. crossing: nan unless there is exactly one, its
    interval nan where a launch has none or several; crossings: all. told_below, told_above: points on either side at
    which the two are told apart.
    """

    y: Any
    first: str
    second: str
    state: str = NOT_MEASURED
    below: str | None = None
    above: str | None = None
    crossing: float = np.nan
    low: float = np.nan
    high: float = np.nan
    crossings: list[float] = field(default_factory=list)
    launches: int = 0
    crossing_launches: int = 0
    told_below: int = 0
    told_above: int = 0
    points: int = 0


def rivals(frame: pd.DataFrame) -> tuple[str, str] | None:
    """The two systems between which a border is looked for: those of QUESTION, else the two that win most points."""
    systems = list(dict.fromkeys(frame["system"]))
    if set(QUESTION) <= set(systems):
        return QUESTION
    won = winners(frame)
    votes = Counter([*won["winner"], *won["winner"], *won["second"]])  # a second place is half a win
    ranked = sorted(systems, key=lambda system: -votes[system])
    return (ranked[0], ranked[1]) if len(ranked) > 1 else None


def borders(frame: pd.DataFrame, pair: tuple[str, str] | None = None, floor: Floor | None = None) -> pd.DataFrame:
    """A Border a row, one for each y: the zero of log(time ratio), a geometric mean over launches.

    It is interpolated between neighbouring x; its interval is Student's t over the zeros of each launch. Empty when x
    is not a number or there is no pair.
    """
    pair = pair or rivals(frame)
    numeric = pd.api.types.is_numeric_dtype(frame["x"])
    in_log = numeric and geometric(set(frame["x"]))
    each = (frame.loc[frame["y"] == y] for y in frame["y"].unique())
    rows = [border(here, pair, floor, in_log) for here in each] if pair and numeric else []
    return pd.DataFrame(rows, columns=[one.name for one in fields(Border)])


def border(here: pd.DataFrame, pair: tuple[str, str], floor: Floor | None, in_log: bool) -> Border:
    """The border at one y."""
    unknown = Border(here["y"].iloc[0], *pair)
    ratios_X = {x: launch_pairs(at, pair) for x, at in here.groupby("x")}
    logs = pd.DataFrame({x: np.log(pairs[pair[0]] / pairs[pair[1]]) for x, pairs in ratios_X.items() if len(pairs)})
    if len(logs.columns) < 2:
        return unknown
    xs, mean_X = logs.columns.to_numpy(dtype=float), logs.mean().to_numpy()
    crossings, launches = zeros(xs, mean_X, in_log), logs.dropna().to_numpy()
    told_X = np.array([told_apart(*time_ratio(select(here, x=x), *pair)[1:], floor) for x in xs])
    once = [found[0] for launch_X in launches if len(found := zeros(xs, launch_X, in_log)) == 1]
    crossing, low, high = (crossings[0], np.nan, np.nan) if len(crossings) == 1 else (np.nan, np.nan, np.nan)
    if len(crossings) == 1 and len(once) == len(launches) > 0:
        low, high = t_interval(once, crossing)[1:]
    before_X = ~(xs >= crossing)  # all of them where there is no crossing
    return replace(
        unknown,
        state=UNCLEAR if not told_X.any() else {0: ALWAYS, 1: CROSSES}.get(len(crossings), SEVERAL),
        below=pair[int(mean_X[0] > 0)],
        above=pair[int(mean_X[-1] > 0)],
        crossing=crossing,
        low=low,
        high=high,
        crossings=crossings,
        launches=len(launches),
        crossing_launches=len(once),
        told_below=int(told_X[before_X].sum()),
        told_above=int(told_X[~before_X].sum()),
        points=len(xs),
    )


def geometric(values: Collection[float]) -> bool:
    """Whether an axis is one of factors (8, 32, 128) rather than of steps (1, 1.5, 2)."""
    low, high = min(values), max(values)
    return bool(low > 0 and high > WIDE * low)


def zeros(xs: np.ndarray, logs_X: np.ndarray, in_log: bool = False) -> list[float]:
    """Where a curve through points changes its sign, linear between neighbours (in log x if `in_log`)."""
    places = np.log(xs) if in_log else xs
    left = np.flatnonzero((logs_X[:-1] >= 0) != (logs_X[1:] >= 0))
    share = logs_X[left] / (logs_X[left] - logs_X[left + 1])
    found = places[left] + share * (places[left + 1] - places[left])
    return [float(x) for x in (np.exp(found) if in_log else found)]
