"""An attribution drawn: a waterfall of one point, and the shares of the difference at every point of a panel."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from analysis.attribution.account import RESIDUAL, TOTAL
from analysis.attribution.ladder import absent_rungs, attribute
from analysis.attribution.words import (
    PART_NAMES,
    by_part,
    cause_shares,
    in_words,
    present_parts,
    rung_name,
    saved,
    shown_x,
)
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
from analysis.findings import Findings, describe
from analysis.frames import select
from analysis.labels import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    axis_name,
    short_axis_name,
    x_text,
)
from analysis.load import Campaign
from analysis.tables import slug

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
CAUSE_COLOURS = {
    "padding": VERMILLION,
    "padded layout": ORANGE,
    "imbalance": PURPLE,
    "sharding": BLUE,
    "implementation": SKY,
    "engine": GREEN,
}
LOST: dict[str, Any] = {"hatch": "/////", "edgecolor": "#ffffff", "linewidth": 0.0}
ROW = 0.27  # inches
NOTHING = 1e-9  # ms
LIMIT = 10  # percent that may stay unexplained
ZOOM_FROM = "ep"  # the steps before it dwarf the others
SHARES = "Means of launches; hatched, below zero: works against it. Unexplained: 95 % interval over launches."
Slices = list[tuple[str, float]]


def draw_attribution(findings: Findings, panel: dict) -> Iterator[Picture]:
    """The waterfall of one point, and where there are several the shares at all of them; none without a ladder."""
    campaign, name = findings.campaign, panel["name"]
    rows = attribute(campaign, name)
    if rows.empty:
        return
    x = shown_x(rows)
    said = [brief(campaign), absent_sentence(campaign, name, x), *in_words(campaign, rows)]
    title = f"{panel['title']}: from one system to the next, {short_axis_name(panel['x_name'])} = "
    path = campaign.folder / slug(name)
    title += x_text(panel["x_name"], x)
    yield plot_waterfall(select(rows, x=x), path, title=title, note=" ".join(filter(None, said)))
    if len(rows["x"].unique()) > 1:
        note = f"{SHARES} {describe(campaign)}"
        title = f"{panel['title']}: what the difference between the two ends of the ladder is made of"
        yield plot_shares(rows, path.with_name(f"{path.name}_shares"), title=title, note=note)


def absent_sentence(campaign: Campaign, panel: str, x: object) -> str:
    """Which rungs a picture lacks; empty when none."""
    names = [rung_name(rung.name) for rung in absent_rungs(campaign, panel, x)]
    return f"Not in the ladder, for want of a verified measurement: {', '.join(names)}." if names else ""


def brief(campaign: Campaign) -> str:
    """Source and tier in few words, for a note that has much else to say."""
    sources = "/".join(sorted({run["source"] for run in campaign.runs.values() if run.get("source")}))
    tier = campaign.plan["tier"]
    return f"Source: {sources}, tier {tier}{'' if tier in ('full', 'once') else ' (not for claims)'}."


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
