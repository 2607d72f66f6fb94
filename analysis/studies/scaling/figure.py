"""Layer time and peak memory of a rank against the number of ranks, both axes logarithmic."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from analysis.figures.canvas import FONT, SMALL, Picture, column_title, drawing, margins, new_figure, save, spread, tidy
from analysis.frames import select
from analysis.labels import system_name, system_styles
from analysis.reduce import single
from analysis.studies.scaling.frame import COLUMNS


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
