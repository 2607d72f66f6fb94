"""Panels of kind `league`: every system at one point, with what it moves, holds and drops."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from analysis.figures.canvas import BOUNDS, FONT, SMALL, Picture, drawing, margins, new_figure, save, tidy
from analysis.figures.panels import note, places, statistics_of
from analysis.frames import select
from analysis.labels import SERIES, number, series_names, system_styles
from analysis.load import simulated_on
from analysis.panel_tables import SYSTEMS, series_table
from analysis.study import Study
from analysis.tables import Table

TEXT: dict[str, Any] = {"fontsize": SMALL, "va": "center"}
LEAGUE = "Medians of the slowest rank, 95 % intervals, cut at half; ranks meet before each layer."
COLUMNS = SYSTEMS | {
    "over_least": ("busiest rank ÷ least possible", number),
    "bytes_sent": ("sent a pass, MB", lambda value: number(value / 1e6)),
    "weight_bytes": ("expert weights of a rank, MB", lambda value: number(value / 1e6)),
    "section_ms/plan": ("plan, ms", number),
    "section_ms/weights": ("moving weights, ms", number),
    "dropped": ("dropped", number),
    "predicted": ("loads predicted, share", number),
}
METRICS = {"ttft_ms": "forward pass, ms", "layer_moe_ms": "one MoE layer, ms"}
WIDE = 5  # a factor between slowest and fastest above which a linear axis hides the fast ones


@drawing
def plot_league(rows: pd.DataFrame, path: Path, *, title: str, note: str = "") -> Picture:
    """A dot with its interval for each series and metric, in the order of the forward pass.

    rows: one point's rows of `summarise`.
    """
    rows = rows.loc[rows["metric"].isin(METRICS)]
    names = series_names(rows)
    slowest_first = select(rows, metric="ttft_ms").sort_values("value", ascending=False)
    order = list(slowest_first[SERIES].itertuples(index=False, name=None))
    styles = system_styles([system for system, *_ in names])
    figure = new_figure(1.6 + 0.2 * len(order))
    margins(figure, left=0.3 + max(map(len, names.values())) * 0.6 * SMALL / 72, right=0.45, top=0.62, wspace=0.12)
    for axis, (metric, heading) in zip(figure.subplots(1, 2, sharey=True), METRICS.items(), strict=True):
        mine = select(rows, metric=metric).set_index(SERIES).reindex(pd.MultiIndex.from_tuples(order, names=SERIES))
        value, bounds = mine["value"].to_numpy(float), mine[BOUNDS].to_numpy(float)
        error = np.clip(np.abs(bounds.T - value), 0, 0.5 * value)  # two launches can leave intervals without end
        if not np.isfinite(value).any():
            continue
        for place, key in enumerate(order):
            colour, marker = styles[key[0]]
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5}
            axis.errorbar(value[place], place, xerr=error[:, place : place + 1], **look, elinewidth=1)
            if np.isfinite(value[place]):
                top = np.nanmax([value[place], value[place] + error[1, place]])
                axis.annotate(number(value[place]), (top, place), (4, 0), textcoords="offset points", **TEXT)
        finish(axis, value)
        axis.set_xlabel(heading, fontsize=FONT)
        axis.set_yticks(range(len(order)), [names[key] for key in order], fontsize=SMALL)
    return save(figure, title, note, path)


def finish(axis: Axes, value: np.ndarray) -> None:
    """Milliseconds from zero, or on a log axis where a linear one would hide the fast systems."""
    tidy(axis, "x")
    low, high = float(np.nanmin(value)), float(np.nanmax(value))
    if high > WIDE * low:
        axis.set_xscale("log")
        axis.set_xlim(low / 1.3, high * 2.2)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
        axis.minorticks_off()
    else:
        axis.set_xlim(0, 1.25 * high)


class League(Study):
    """A picture a point, and all points in one table."""

    kinds = ("league",)

    def figures(self, panel: dict) -> Iterator[Picture]:
        for point, at, path in places(self.findings.campaign, panel):
            here = select(self.findings.summary, experiment=panel["name"], x=point["x"])
            if len(here):
                said = note(self.findings, panel, statistics_of(self.findings, panel, LEAGUE), self._ties(here, panel))
                yield plot_league(here, path, title=f"{panel['title']}{at}", note=said)

    def _ties(self, here: pd.DataFrame, panel: dict) -> str:
        """Of one simulated point, which systems the model's error does not tell from the fastest."""
        band = self.findings.floor_of(panel).get("ttft_ms")
        if not simulated_on(self.findings.campaign, panel) or band is None:
            return ""
        passes = select(here, metric="ttft_ms").sort_values("value")
        names, fastest = series_names(here), passes["value"].min()
        near = passes.loc[passes["value"] <= fastest * (1 + band.value), SERIES].itertuples(index=False, name=None)
        tied = [names[key] for key in near]
        return f"{'Tied for the fastest' if len(tied) > 1 else 'Fastest'} forward pass: {', '.join(tied)}."

    def table(self, panel: dict) -> Table:
        return series_table(self.findings, panel, COLUMNS)


STUDY = League
