"""What a check sees, and what it says.

A check is a function from Evidence to findings. It names what it looked at with numbers, and each can fail.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.load import Campaign, turn_of

PASS, WARN, FAIL, SKIP = "pass", "warn", "fail", "not applicable"
SEVERITY = [SKIP, PASS, WARN, FAIL]  # the worst comes last


class Finding(NamedTuple):
    """A verdict on one cell, or on the campaign (cell None), with one sentence."""

    cell: str | None
    verdict: str
    detail: str


@dataclass(frozen=True)
class Cell:
    """One ok cell: what run.json says and its rows."""

    id: str
    run: dict
    frame: pd.DataFrame

    @cached_property
    def parts(self) -> dict[Any, pd.DataFrame]:
        """Rows by (phase, metric)."""
        return dict(iter(self.frame.groupby(["phase", "metric"])))

    def rows(self, phase: str, metric: str) -> Any:
        """A table, empty where nothing was recorded. (Any: pandas' own annotations make every column half a table.)"""
        return self.parts.get((phase, metric), self.frame.iloc[:0])

    def slowest(self, phase: str) -> Any:
        """TTFT in ms of each iteration's slowest rank, in the order of iterations: a pd.Series."""
        return self.rows(phase, "ttft_ms").groupby("iteration")["value"].max()

    @property
    def turn(self) -> int:
        return turn_of(self.run)

    @property
    def world_size(self) -> int:
        return self.run["point"]["world_size"]


@dataclass(frozen=True)
class Evidence:
    """A campaign, its summary, and its ok cells."""

    campaign: Campaign
    summary: pd.DataFrame

    @cached_property
    def cells(self) -> list[Cell]:
        return [Cell(cell, self.campaign.runs[cell], frame) for cell, frame in self.campaign.frames.items()]

    def without(self, source: str) -> "Evidence":
        """The same, without the cells of one source."""
        kept = {cell.id: cell.frame for cell in self.cells if cell.run["source"] != source}
        return Evidence(replace(self.campaign, frames=kept), self.summary.loc[self.summary["source"] != source])

    def groups(self, key: Callable[[Cell], object]) -> list[list[Cell]]:
        """Cells of the same key together."""
        found: dict[object, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(key(cell), []).append(cell)
        return list(found.values())

    @cached_property
    def points(self) -> list[list[Cell]]:
        """The cells of each workload point of the plan, however many panels show it."""
        planned = {tuple(p["cells"]) for panel in self.campaign.plan["panels"] for p in panel["points"]}
        return [[cell for cell in self.cells if cell.id in ids] for ids in map(set, sorted(planned))]


Check = Callable[[Evidence], Iterator[Finding]]


def graded(cell: str | None, value: float, detail: str, *, warn: float, fail: float = np.inf) -> Finding:
    """Above `fail`: fail, above `warn`: warn."""
    return Finding(cell, FAIL if value > fail else WARN if value > warn else PASS, detail)


def expect(cell: str | None, problems: list[str], detail: str, verdict: str = FAIL) -> Finding:
    """`verdict` with the problems, or a pass with the detail."""
    return Finding(cell, verdict, f"{'; '.join(problems)}.") if problems else Finding(cell, PASS, detail)


def holm(p_values: list[float]) -> np.ndarray:
    """p values adjusted so that many cells together give a false alarm no more often than one would (Holm 1979)."""
    p = np.asarray(p_values, dtype=float)
    order, count = np.argsort(p), len(p)
    adjusted = np.empty(count)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(count, 0, -1)))
    return adjusted


def percent(share: float) -> str:
    """Of a share from 0 to 1."""
    return f"{100 * share:.1f} %"
