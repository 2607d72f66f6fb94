"""What the paper says of its Figure 3 in words, judged on our points.

A judge takes one series' points by the paper's x and returns what was obtained and a verdict. Where two numbers are
compared, `reproduced` needs disjoint intervals and `direction only` the values.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from analysis.labels import times

REPRODUCED, DIRECTION, FAILED, NOT_MEASURED = "reproduced", "direction only", "not reproduced", "not measured"


class Ratio(NamedTuple):
    """A speed-up with its interval."""

    value: float
    low: float
    high: float


Points = dict[int, Ratio]
Judge = Callable[[Points], tuple[str, str]]
UNKNOWN = ("–", NOT_MEASURED)


def grade(shown: bool, suggested: bool) -> str:
    return REPRODUCED if shown else DIRECTION if suggested else FAILED


def peak_at(x: int) -> Judge:
    """The largest value is at x; direction only when it is at another inner point."""

    def judge(points: Points) -> tuple[str, str]:
        inner = sorted(points)[1:-1]
        if x not in inner:
            return UNKNOWN
        best = max(points, key=lambda at: points[at].value)
        return f"peak at {best}, {times(points[best].value)}", grade(best == x, best in inner)

    return judge


def declines(start: int, stop: int) -> Judge:
    """Less at stop than at start."""

    def judge(points: Points) -> tuple[str, str]:
        if not {start, stop} <= points.keys():
            return UNKNOWN
        first, last = points[start], points[stop]
        return from_to(first, last), grade(last.high < first.low, last.value < first.value)

    return judge


def grows_to(x: int) -> Judge:
    """Every step up to x is upwards; direction only when merely the last point is above the first."""

    def judge(points: Points) -> tuple[str, str]:
        steps = [points[at] for at in sorted(points) if at <= x]
        if x not in points or len(steps) < 2:
            return UNKNOWN
        rising = all(left.value < right.value for left, right in pairwise(steps))
        return from_to(steps[0], steps[-1]), grade(rising, steps[0].value < steps[-1].value)

    return judge


def slower_at(x: int) -> Judge:
    return lambda points: one_point(points, x, lambda ratio: grade(ratio.high < 1, ratio.value < 1))


def faster_at(x: int) -> Judge:
    return lambda points: one_point(points, x, lambda ratio: grade(ratio.low > 1, ratio.value > 1))


def one_point(points: Points, x: int, verdict: Callable[[Ratio], str]) -> tuple[str, str]:
    return (times(points[x].value), verdict(points[x])) if x in points else UNKNOWN


def from_to(first: Ratio, last: Ratio) -> str:
    return f"{times(first.value)} to {times(last.value)}"


CLAIMS: list[tuple[str, str, Judge]] = [
    ("peak at 64 experts", "num_experts", peak_at(64)),
    ("declines from 64 to 256 experts", "num_experts", declines(64, 256)),
    ("slower than the baseline at batch 10", "batch_size", slower_at(10)),
    ("faster at batch 100", "batch_size", faster_at(100)),
    ("grows up to batch 450", "batch_size", grows_to(450)),
]


def claims_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """One row for each claim and series of Figure 3, judged on the layer ratio and on TTFT; from `verdict_table`."""
    if verdicts.empty:
        return verdicts
    figure_3 = verdicts.loc[verdicts["figure"].str.startswith("3")]
    rows = []
    for (x_name, series), points in figure_3.groupby(["x_name", "series"], sort=False):
        for claim, claim_x, judge in CLAIMS:
            if claim_x == x_name:
                rows.append({"claim": claim, "series": series} | judge_both(points, judge))
    return pd.DataFrame(rows)


def judge_both(points: pd.DataFrame, judge: Judge) -> dict[str, str]:
    row = {}
    for short in ("layer", "ttft"):
        measured = points.dropna(subset=[short]).to_dict("records")
        by_x = {p["published_x"]: Ratio(p[short], p[f"{short}_low"], p[f"{short}_high"]) for p in measured}
        row[short], row[f"{short}_verdict"] = judge(by_x)
    return row
