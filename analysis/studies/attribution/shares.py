"""An attribution drawn as shares of the difference, at every point of a panel."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from analysis.figures.canvas import (
    FONT,
    HALO,
    SMALL,
    Picture,
    column_title,
    drawing,
    margins,
    new_figure,
    save,
    tidy,
)
from analysis.frames import select
from analysis.labels import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, axis_name, x_text
from analysis.studies.attribution.account import RESIDUAL, TOTAL
from analysis.studies.attribution.waterfall import COLOURS, LOST, Slices
from analysis.studies.attribution.words import PART_NAMES, by_part, cause_shares, present_parts, saved

CAUSE_COLOURS = {
    "padding": VERMILLION,
    "padded layout": ORANGE,
    "imbalance": PURPLE,
    "sharding": BLUE,
    "implementation": SKY,
    "engine": GREEN,
}
LIMIT = 10  # percent that may stay unexplained


@drawing
def plot_shares(rows: pd.DataFrame, path: Path, *, title: str, note: str = "") -> Picture:
    """Shares of the whole difference at every point: by what was changed, by where the time was spent, unexplained.

    rows: of `attribute`, several points. What works against the difference is hatched, below zero.
    """
    xs = list(dict.fromkeys(rows["x"]))
    points = [select(rows, x=x) for x in xs]
    parts = present_parts(select(rows, kind="whole"))
    accounts = [by_part(select(point, kind="whole")) for point in points]
    figure = new_figure(4.8)
    margins(figure, left=0.6, right=0.2, top=1.05, bottom=1.35, hspace=0.26, wspace=0.14)
    axes = figure.subplots(2, 2, sharex="col", height_ratios=[3, 1.1])
    by_cause = [list(cause_shares(point).items()) for point in points]
    draw_stacks(axes[0, 0], by_cause, CAUSE_COLOURS, {}, "by what was changed (ladder)")
    by_account = [[(part, of[part]["percent"]) for part in parts] for of in accounts]
    draw_stacks(axes[0, 1], by_account, COLOURS, PART_NAMES, "by where it was spent (account)")
    low, high = (pick(axis.get_ylim()[i] for axis in axes[0]) for i, pick in enumerate((min, max)))
    for axis in axes[0]:
        axis.set_ylim(low, high)
    axes[0, 0].set_ylabel("% of the difference", fontsize=FONT)
    draw_residuals(axes[1, 1], [of[RESIDUAL] for of in accounts])
    draw_totals(axes[1, 0], [of[TOTAL] for of in accounts])
    for axis in axes[1]:
        axis.set_xticks(range(len(xs)), [x_text(rows["x_name"].iloc[0], x) for x in xs])
        axis.set_xlabel(axis_name(rows["x_name"].iloc[0]), fontsize=FONT)
    return save(figure, title, note, path, lines=6)


def draw_stacks(axis: Axes, stacks: list[Slices], colours: dict[str, str], names: dict[str, str], title: str) -> None:
    """A column a stack, parts above 0 upwards and those below downwards, hatched; the legend above."""
    tidy(axis)
    for place, stack in enumerate(stacks):
        tops = {True: 0.0, False: 0.0}
        for part, value in stack:
            look = LOST if value < 0 else {}
            axis.bar(place, value, bottom=tops[value < 0], width=0.7, facecolor=colours.get(part, GREEN), **look)
            tops[value < 0] += value
    axis.axhline(0, color=BLACK, linewidth=0.8)
    present = dict.fromkeys(part for stack in stacks for part, _ in stack)
    handles = [Patch(color=colours.get(part, GREEN), label=names.get(part, part)) for part in present]
    look = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "columnspacing": 0.9, "handletextpad": 0.4}
    axis.legend(handles=handles, ncols=3, frameon=False, fontsize=SMALL, handlelength=1.0, borderpad=0.1, **look)
    lines = -(-len(handles) // 3)
    column_title(axis, title, pad=6 + 11.5 * lines)


def draw_residuals(axis: Axes, residuals: list[dict]) -> None:
    """What the account leaves unexplained, with its interval as far as the axis reaches, and the limits."""
    tidy(axis)
    values, low, high = (
        np.array([one[key] for one in residuals]) for key in ("percent", "percent_low", "percent_high")
    )
    reach = max(2.0 * LIMIT, 1.3 * np.abs(values).max())
    error = np.nan_to_num(np.abs([values - low, high - values]))
    axis.errorbar(range(len(values)), values, error, color="#555555", marker="o", markersize=4, linestyle="none")
    for limit in (-LIMIT, LIMIT):
        axis.axhline(limit, color=VERMILLION, linewidth=0.8, linestyle="--")
    axis.axhline(0, color=BLACK, linewidth=0.8)
    axis.set_ylim(-reach, reach)
    axis.set_title(f"unexplained, % (dashed: {LIMIT} %)", fontsize=SMALL, loc="left", pad=3)


def draw_totals(axis: Axes, totals: list[dict]) -> None:
    """The difference in ms that the shares are of."""
    tidy(axis)
    values = [one["value"] for one in totals]
    axis.bar(range(len(values)), values, width=0.7, color="#999999")
    for place, value in enumerate(values):
        look = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": SMALL}
        axis.annotate(saved(value), (place, max(value, 0.0)), **look).set_path_effects(HALO)
    axis.margins(y=0.35)
    axis.axhline(0, color=BLACK, linewidth=0.8)
    axis.set_title("the difference, ms saved", fontsize=SMALL, loc="left", pad=3)
