"""An attribution drawn as a waterfall: from one measured system of the ladder to the next, at one point."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from analysis.figures.canvas import FONT, SMALL, Picture, column_title, drawing, margins, new_figure, save, tidy
from analysis.frames import select
from analysis.labels import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, YELLOW
from analysis.studies.attribution.account import RESIDUAL, TOTAL
from analysis.studies.attribution.ladder import PLAIN
from analysis.studies.attribution.words import PART_NAMES, by_part, present_parts, rung_name, saved

COLOURS = {
    "padding": VERMILLION,
    "experts": ORANGE,
    "imbalance": PURPLE,
    "communication": BLUE,
    "waiting": BLUE,
    "weights": BLACK,
    "host": SKY,
    "kernels": YELLOW,
    "non_moe": GREEN,
    RESIDUAL: "#bbbbbb",
}
LOST: dict[str, Any] = {"hatch": "/////", "edgecolor": "#ffffff", "linewidth": 0.0}
ROW = 0.27  # inches
NOTHING = 1e-9  # ms
ZOOM_FROM = PLAIN  # the steps before it dwarf the others
Slices = list[tuple[str, float]]


@drawing
def plot_waterfall(here: pd.DataFrame, path: Path, *, title: str, note: str = "") -> Picture:
    """The whole ladder, and below it what follows ZOOM_FROM on a scale of its own.

    here: one point's rows of `attribute`. Each step has two lanes: above what it saved, leftwards from the level
    before; below, hatched, what it lost on the way back to the new level.
    """
    rungs = [row["above"] for row in select(here, kind="level", part=TOTAL).to_dict("records")]
    starts = [0] + ([at] if ZOOM_FROM in rungs and 0 < (at := rungs.index(ZOOM_FROM)) < len(rungs) - 1 else [])
    rows = [len(rungs) - start + 1 for start in starts]
    left = any(abs(value) > NOTHING for value in select(here, part=RESIDUAL)["value"])
    parts = [*present_parts(here), *([RESIDUAL] if left else [])]
    figure = new_figure(1.95 + ROW * sum(rows) + 0.55 * len(rows))
    margins(figure, left=2.3, right=1.25, top=0.85, bottom=1.35, hspace=0.6 * len(rows) / (ROW * sum(rows)))
    axes = figure.subplots(len(starts), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axis, start in zip(axes, starts, strict=True):
        draw_ladder(axis, here, parts, start)
        column_title(axis, "the whole ladder" if start == 0 else f"from {rung_name(rungs[start])} on, its own scale")
    axes[-1].set_xlabel("TTFT, ms (means of launches); solid: saved, hatched: lost", fontsize=FONT)
    handles = [Patch(color=COLOURS[part], label=PART_NAMES[part]) for part in parts]
    place = {"loc": "upper left", "bbox_to_anchor": (0.005, 1 - 0.3 / figure.get_figheight()), "columnspacing": 1.0}
    figure.legend(handles=handles, ncols=8, frameon=False, fontsize=SMALL, handlelength=1.0, **place)
    return save(figure, title, note, path, lines=6)


def draw_ladder(axis: Axes, here: pd.DataFrame, parts: list[str], start: int) -> None:
    """The rungs from `start` on: the first one's account, each step, the last one's account."""
    tidy(axis, grid="x")
    levels = [by_part(rows) for _, rows in select(here, kind="level").groupby("step")][start:]
    steps = [by_part(rows) for _, rows in select(here, kind="step").groupby("step")][start:]
    names = [rung_name(levels[0][TOTAL]["above"]), *(step[TOTAL]["change"] for step in steps)]
    names += [rung_name(levels[-1][TOTAL]["above"])]
    draw_account(axis, 0, levels[0], parts)
    for place, (above, below, step) in enumerate(zip(levels[:-1], levels[1:], steps, strict=True), start=1):
        draw_step(axis, place, above[TOTAL]["value"], [(part, step[part]["value"]) for part in parts])
        axis.vlines(above[TOTAL]["value"], place - 1.4, place + 0.4, color="#555555", linewidth=0.6)
        print_right(axis, place, f"{round(-step[TOTAL]['value'], 1) + 0.0:+.1f}", saved(below[TOTAL]["value"]))
    last = len(names) - 1
    axis.vlines(levels[-1][TOTAL]["value"], last - 1.4, last + 0.4, color="#555555", linewidth=0.6)
    draw_account(axis, last, levels[-1], parts)
    axis.set_yticks(range(len(names)), names, fontsize=SMALL)
    for place in (0, last):
        axis.get_yticklabels()[place].set_fontweight("bold")
    axis.set_ylim(last + 0.6, -0.6)
    axis.set_xlim(0, 1.03 * max(level[TOTAL]["value"] for level in levels))


def draw_account(axis: Axes, place: float, level: dict[str, dict], parts: list[str]) -> None:
    """A system's own time, its parts side by side; a negative residual is drawn back over the last part."""
    left = 0.0
    for part in parts:
        value = level[part]["value"]
        axis.barh(place, value, left=left, height=0.7, color=COLOURS[part], **(LOST if value < 0 else {}))
        left += value
    print_right(axis, place, "", saved(level[TOTAL]["value"]))


def draw_step(axis: Axes, place: float, level: float, parts: Slices) -> None:
    """One step from `level` ms on: what is saved to the left, then below it what is lost back to the right, hatched."""
    for part, value in (one for one in parts if one[1] > 0):
        axis.barh(place - 0.19, -value, left=level, height=0.36, color=COLOURS[part])
        level -= value
    for part, value in (one for one in parts if one[1] < 0):
        axis.barh(place + 0.19, -value, left=level, height=0.36, facecolor=COLOURS[part], **LOST)
        level -= value


def print_right(axis: Axes, place: float, change: str, level: str) -> None:
    """Right of the axes: what changes, and the level that it leads to."""
    look: dict[str, Any] = {"transform": axis.get_yaxis_transform(), "va": "center", "ha": "right", "fontsize": SMALL}
    axis.text(1.15, place, change, color="#555555", **look)
    axis.text(1.35, place, level, fontweight="normal" if change else "bold", **look)
