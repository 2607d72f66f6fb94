"""Layer time and memory per rank against the number of ranks, simulated lines under measured points."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from analysis.figures.canvas import FONT, SMALL, Picture, column_title, drawing, margins, new_figure, save, spread, tidy
from analysis.frames import select
from analysis.labels import system_name, system_styles

SIMULATED = "simulated"


@drawing
def plot_scaling(rows: pd.DataFrame, path: Path, *, title: str, note: str) -> Picture:
    """rows: columns system, ranks, layer_ms, low_ms, high_ms, memory_mb, source; predictions have source simulated."""
    figure = new_figure(4.0)
    margins(figure, left=0.62, right=1.15, top=0.72, bottom=1.15, wspace=0.32)
    time_axis, memory_axis = figure.subplots(1, 2)
    predicted, measured = select(rows, source=SIMULATED), rows.loc[rows["source"] != SIMULATED]
    for axis, column, heading in (
        (time_axis, "layer_ms", "one MoE layer, ms"),
        (memory_axis, "memory_mb", "memory per rank, MB"),
    ):
        draw(axis, predicted, measured, column)
        column_title(axis, heading)
        finish(axis, sorted(set(rows["ranks"])))
    name_lines(memory_axis, predicted, "memory_mb")
    return save(figure, title, note, path)


def draw(axis: Axes, predicted: pd.DataFrame, measured: pd.DataFrame, column: str) -> None:
    """Each system's line with its band (of times), and what was measured as points."""
    styles = system_styles(list(dict.fromkeys(predicted["system"])))
    for at, (system, (colour, marker)) in enumerate(styles.items()):
        line = select(predicted, system=system).dropna(subset=column).sort_values("ranks")
        # Systems that coincide show through one another's gaps.
        dashes = (0, (4 + 2 * at, 2))
        axis.plot(line["ranks"], line[column], color=colour, linestyle=dashes, linewidth=1.3, zorder=3 - 0.1 * at)
        if column != "layer_ms":
            continue
        axis.fill_between(line["ranks"], line["low_ms"], line["high_ms"], color=colour, alpha=0.13, linewidth=0)
        points = select(measured, system=system)
        axis.plot(
            points["ranks"], points[column], color=colour, marker=marker, markersize=4, linestyle="none", zorder=4
        )


def finish(axis: Axes, ranks: list[int]) -> None:
    """Both axes logarithmic, with ticks at the numbers of ranks and at 1, 2 and 5 times powers of ten."""
    tidy(axis)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(ranks))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("ranks", fontsize=FONT)


def name_lines(axis: Axes, predicted: pd.DataFrame, column: str) -> None:
    """Names in the right margin, level with the ends of their lines."""
    styles = system_styles(list(dict.fromkeys(predicted["system"])))
    lines = {name: select(predicted, system=name).dropna(subset=column).sort_values("ranks") for name in styles}
    lasts = {name: line[column].iloc[-1] for name, line in lines.items() if len(line)}
    axis.figure.canvas.draw()
    heights = [float(axis.transData.transform((2, last))[1]) for last in lasts.values()]
    for name, height in zip(lasts, spread(heights, gap=SMALL * 1.3 * axis.figure.dpi / 72), strict=True):
        fraction = float(np.clip(axis.transAxes.inverted().transform((0, height))[1], -0.1, 1.1))
        look = {"transform": axis.transAxes, "color": styles[name][0], "fontsize": SMALL, "va": "center"}
        axis.text(1.03, fraction, system_name(name), **look)
