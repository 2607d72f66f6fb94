"""Panels of kind `scaling`: a figure for each value of the second axis."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from analysis.figures.canvas import FONT, SMALL, Picture, column_title, drawing, margins, new_figure, save, spread, tidy
from analysis.figures.panels import absent, joined
from analysis.findings import describe
from analysis.frames import select
from analysis.labels import number, short_axis_name, system_name, system_styles, x_text
from analysis.load import Campaign, coverage
from analysis.reduce import single
from analysis.series import launch_medians
from analysis.study import Study
from analysis.tables import Table, slug

COLUMNS = {"layer_ms": "MoE layer, ms", "memory_gb": "peak memory of a rank, GB"}
RANKS = "Medians of the slowest rank; memory of the rank that holds most, weights included."
PLACE = ["y", "ranks", "system"]


def scaling_frame(campaign: Campaign, panel: dict) -> pd.DataFrame:
    """One row a system and point: y, ranks, system, layer_ms, memory_gb (nan where it was not recorded), source."""
    times = launch_medians(campaign, [panel]).rename(columns={"x": "ranks", "value": "layer_ms"})
    times = select(times, metric="layer_moe_ms", twin=False)
    times = times.groupby([*PLACE, "source"], sort=False, dropna=False, as_index=False)["layer_ms"].median()
    peaks = [
        {"y": point.get("y"), "ranks": point["x"], "system": campaign.runs[cell]["system"], "memory_gb": peak_gb(frame)}
        for point in panel["points"]
        for cell in point["cells"]
        if (frame := campaign.frames.get(cell)) is not None
    ]
    columns = [*PLACE, "memory_gb"]
    memory: Any = pd.DataFrame(peaks, columns=columns).groupby(PLACE, dropna=False, as_index=False).max()
    return times.merge(memory, on=PLACE, how="left")


def peak_gb(samples: pd.DataFrame) -> float:
    """Of the rank that holds most."""
    return float(select(samples, metric="peak_memory_bytes")["value"].to_numpy().max()) / 1e9


@drawing
def plot_scaling(frame: pd.DataFrame, path: Path, *, title: str, note: str) -> Picture:
    """frame: rows of `scaling_frame` of one y. Raises ValueError when sources are mixed."""
    single(frame, "source")
    figure = new_figure(4.0)
    margins(figure, left=0.62, right=1.25, top=0.72, bottom=1.15, wspace=0.32)
    axes = figure.subplots(1, 2)
    for axis, (column, heading) in zip(axes, COLUMNS.items(), strict=True):
        draw(axis, frame, column)
        column_title(axis, heading)
        finish(axis, sorted(set(frame["ranks"])))
    name_lines(axes[-1], frame.dropna(subset="memory_gb"), "memory_gb")
    return save(figure, title, note, path)


def draw(axis: Axes, frame: pd.DataFrame, column: str) -> None:
    """Each system's line; systems that coincide show through one another's gaps."""
    for at, (system, (colour, marker)) in enumerate(system_styles(list(dict.fromkeys(frame["system"]))).items()):
        line = select(frame, system=system).sort_values("ranks")
        look = {"color": colour, "linestyle": (0, (4 + 2 * at, 2)), "linewidth": 1.3, "zorder": 3 - 0.1 * at}
        axis.plot(line["ranks"], line[column], marker=marker, markersize=3.5, **look)


def finish(axis: Axes, ranks: list[int]) -> None:
    """Both axes logarithmic, with ticks at the numbers of ranks and at 1, 2 and 5 times powers of ten."""
    tidy(axis)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(ranks))
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter(lambda value, _: f"{value:g}")
        each.set_minor_locator(NullLocator())
    axis.set_xlabel("ranks", fontsize=FONT)


def name_lines(axis: Axes, frame: pd.DataFrame, column: str) -> None:
    """Names in the right margin, level with the ends of their lines."""
    lasts = frame.sort_values("ranks").groupby("system", sort=False)[column].last()
    styles = system_styles(list(dict.fromkeys(frame["system"])))
    axis.figure.canvas.draw()
    heights = [float(axis.transData.transform((2, last))[1]) for last in lasts]
    for name, height in zip(lasts.index, spread(heights, gap=SMALL * 1.3 * axis.figure.dpi / 72), strict=True):
        fraction = float(np.clip(axis.transAxes.inverted().transform((0, height))[1], -0.1, 1.1))
        look = {"transform": axis.transAxes, "color": styles[name][0], "fontsize": SMALL, "va": "center"}
        axis.text(1.03, fraction, system_name(name), **look)


class Scaling(Study):
    """Layer time and memory against the number of ranks."""

    kinds = ("scaling",)

    def figures(self, panel: dict) -> Iterator[Picture]:
        campaign = self.findings.campaign
        frame = scaling_frame(campaign, panel)
        for y in frame["y"].unique():
            here, at, end = frame.loc[frame["y"] == y], "", ""
            if panel.get("y_name"):
                at, end = f", {short_axis_name(panel['y_name'])} {x_text(panel['y_name'], y)}", f"_{y}"
            note = joined(RANKS, describe(campaign, panel), absent(campaign, panel))
            path = campaign.folder / slug(f"{panel['name']}{end}")
            yield plot_scaling(here, path, title=f"{panel['title']}{at}", note=note)

    def table(self, panel: dict) -> Table:
        """A row a y, system and quantity, a column a number of ranks; where there is no number, the cell's state."""
        frame, shown = scaling_frame(self.findings.campaign, panel), []
        states = select(coverage(self.findings.campaign), experiment=panel["name"])
        why = {(row["y"], row["x"], row["system"]): row["state"] for row in states.to_dict("records")}
        found = {(row["y"], row["ranks"], row["system"]): row for row in frame.to_dict("records")}
        ranks = list(dict.fromkeys(point["x"] for point in panel["points"]))
        for y in dict.fromkeys(point.get("y") for point in panel["points"]):
            place = {short_axis_name(panel["y_name"]): x_text(panel["y_name"], y)} if panel.get("y_name") else {}
            for system in dict.fromkeys(states["system"].dropna()):
                for column, title in COLUMNS.items():
                    places = {str(rank): (y, rank, system) for rank in ranks}
                    cells = {
                        rank: number(found[place][column]) if place in found else why.get(place, "–")
                        for rank, place in places.items()
                    }
                    shown.append(place | {"system": system_name(system), "": title} | cells)
        title = f"{panel['title']}: by number of ranks"
        return Table(slug(panel["name"]), title, frame, pd.DataFrame(shown))


STUDY = Scaling
