"""A panel from several sources side by side, such as simulated and as run here; ratios above, times below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.canvas import (
    FONT,
    HIDDEN,
    SMALL,
    Picture,
    drawing,
    margins,
    new_figure,
    ratio_axis,
    save,
    shown_range,
    tidy,
    time_axis,
)
from analysis.figures.speedup import draw_floor, draw_series
from analysis.frames import select
from analysis.labels import axis_name, system_name, x_text
from analysis.stats import Floor

SPEEDUP, TIME_MS = "speedup_layer_paper", "layer_moe_ms"


@dataclass(frozen=True)
class Column:
    """One source of a panel: what stands above it, its points, its rows of `summarise`, and the floor of its ratios."""

    title: str
    points: list[dict]
    rows: pd.DataFrame
    floors: Mapping[str, Floor] = field(default_factory=dict)


@drawing
def plot_beside(
    columns: Sequence[Column], x_name: str, path: Path, *, title: str, note: str = "", baseline: str = "baseline"
) -> Picture:
    """Draw the columns to `path`.png and `path`.svg: all on one scale of ratios, each on its own of times."""
    figure = new_figure(5.0)
    margins(figure, left=0.62, right=0.15, top=0.85, bottom=1.2, hspace=0.12, wspace=0.22)
    axes = figure.subplots(2, len(columns), sharex="col", squeeze=False)
    for column, (above, below) in zip(columns, axes.T, strict=True):
        above.sharey(axes[0, 0])
        for axis, metric in ((above, SPEEDUP), (below, TIME_MS)):
            tidy(axis)
            rows = select(column.rows, metric=metric)
            draw_series(axis, rows, column.points, column.rows, column.floors.get(metric))
        draw_floor(above, column.floors.get(SPEEDUP))
        low, high = shown_range(select(column.rows, metric=TIME_MS))
        time_axis(below, low / 1.3, high * 1.3)
        above.set_title(column.title, fontsize=FONT, loc="left", fontweight="bold")
        below.set_xticks(range(len(column.points)), [x_text(x_name, point["x"]) for point in column.points])
        below.set_xlim(-0.45, len(column.points) - 0.55)
        below.set_xlabel(axis_name(x_name), fontsize=FONT)
    ratio_axis(axes[0, 0], *shown_range(pd.concat([select(column.rows, metric=SPEEDUP) for column in columns])))
    axes[0, 0].set_ylabel(f"speed-up over {system_name(baseline)}", fontsize=SMALL)
    axes[1, 0].set_ylabel("one MoE layer, ms", fontsize=SMALL)
    figure.align_ylabels()
    name_series(figure, axes)
    return save(figure, title, note, path, lines=6)


def name_series(figure: Figure, axes: np.ndarray) -> None:
    """One legend below the title; a system looks the same in every column."""
    found = {
        str(container.get_label()): container[0]
        for axis in axes.flat
        for container in axis.containers
        if container.get_label() != HIDDEN
    }
    place = {"loc": "upper left", "bbox_to_anchor": (0.005, 1 - 0.32 / figure.get_figheight()), "borderaxespad": 0.0}
    look = {"ncols": 6, "frameon": False, "fontsize": SMALL, "handletextpad": 0.4, "columnspacing": 1.0}
    look |= {"handlelength": 1.4}
    figure.legend(list(found.values()), list(found), **place, **look)
