"""A panel of speed-ups: the ratio above, absolute time below; one MoE layer left, the full forward pass right."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.canvas import (
    BOUNDS,
    FONT,
    HALO,
    HIDDEN,
    INTERVAL,
    SMALL,
    Picture,
    column_title,
    drawing,
    label_lines,
    margins,
    new_figure,
    ratio_axis,
    save,
    shown_range,
    tidy,
    time_axis,
)
from analysis.frames import select
from analysis.labels import (
    GREY,
    axis_name,
    in_regime,
    number,
    series_names,
    system_name,
    system_styles,
    within_floor,
    x_text,
)
from analysis.reduce import single
from analysis.stats import Floor

DODGE = 0.08  # of the distance between two points
LINES = ["-", "--", ":", "-."]
LINE: dict[str, Any] = {
    "linewidth": 1.4,
    "markersize": 5,
    "markeredgecolor": "white",
    "markeredgewidth": 0.5,
    **INTERVAL,
}
UNCLAIMED: dict[str, Any] = {
    "linestyle": "none",
    "color": "#b0b0b0",
    "markerfacecolor": "white",
    "markeredgecolor": GREY,
    "zorder": 3,
}
# Title of the column, its speed-up, its time.
COLUMNS = [
    ("One MoE layer", "speedup_layer_paper", "layer_moe_ms"),
    ("Full forward pass (TTFT)", "speedup_ttft", "ttft_ms"),
]


@dataclass(frozen=True)
class Marks:
    """Speed-ups from elsewhere, by x: hollow markers around those of the system that they are held against."""

    metric: str
    system: str
    name: str
    values: Mapping[Any, float]
    dashed: bool = False


@drawing
def plot_speedup(
    summary: pd.DataFrame,
    panel: dict,
    marks: Sequence[Marks],
    path: Path,
    *,
    baseline: str | None = None,
    floors: Mapping[str, Floor] | None = None,
    note: str = "",
    regime: str = "",
) -> Picture:
    """Draw one panel to `path`.png and `path`.svg.

    summary: rows of `summarise`. floors: the A/A noise floor (or the model's error) by speed-up, a band around 1x
    inside which points are grey. note: sentences under the axes. Without speed-ups in the panel only the row of
    absolute times is drawn. Raises ValueError when sources are mixed.
    """
    summary = select(summary, experiment=panel["name"])
    for origin in ("source", "device"):
        single(summary, origin)
    floors = floors or {}
    points = sorted(panel["points"], key=lambda point: point["x"]) if ordered(panel) else panel["points"]
    compared = {speedup for _, speedup, *_ in COLUMNS} & set(summary["metric"])
    figure, axes = empty_figure([1.25, 1.0] if compared else [1.0], longest_name(summary))
    for axis_column, (title, speedup, time_ms) in zip(axes.T, COLUMNS, strict=True):
        if compared:
            draw_floor(axis_column[0], floors.get(speedup))
            draw_series(axis_column[0], select(summary, metric=speedup), points, summary, floors.get(speedup))
            draw_marks(axis_column[0], [one for one in marks if one.metric == speedup], points, summary)
        draw_series(axis_column[-1], select(summary, metric=time_ms), points, summary)
        print_times(axis_column[-1], select(summary, metric=time_ms), baseline, points)
        finish_times(axis_column[-1], select(summary, metric=time_ms), panel["x_name"], points)
        column_title(axis_column[0], in_regime(title, regime), pad=18 if marks else 6)
    if compared:
        # Both columns share it, so it is set after both are drawn.
        theirs = [value for one in marks for value in one.values.values()]
        low, high = shown_range(summary.loc[summary["metric"].isin(list(compared))])
        ratio_axis(axes[0, 0], min([low, *theirs]), max([high, *theirs]))
        axes[0, 0].set_ylabel(f"speed-up over {system_name(baseline or 'baseline')}, log scale", fontsize=FONT)
    axes[-1, 0].set_ylabel("ms, log scale", fontsize=FONT)
    figure.align_ylabels()
    for axis in axes[:, -1]:
        label_lines(axis)
    subject = f"speed-up over {system_name(baseline)}" if baseline and compared else "time"
    return save(figure, f"{panel['title']}: {subject} against {axis_name(panel['x_name'])}", note, path)


def ordered(panel: dict) -> bool:
    """Whether the panel's factor is a number; only then are its points joined."""
    return all(isinstance(point["x"], int | float) for point in panel["points"])


def longest_name(summary: pd.DataFrame) -> int:
    """Characters of the longest series name, for which there must be room."""
    return max(map(len, series_names(summary).values()), default=0)


def empty_figure(heights: list[float], longest_name: int) -> tuple[Figure, np.ndarray]:
    """Two columns of axes; the speed-ups share their y axis, to be compared across columns."""
    figure = new_figure(1.95 + 1.95 * sum(heights))
    names = min(0.25 + longest_name * 0.6 * SMALL / 72, 2.2)
    margins(figure, left=0.62, right=names, bottom=1.1, hspace=0.1, wspace=0.2)
    axes = figure.subplots(len(heights), 2, sharex="all", squeeze=False, height_ratios=heights)
    if len(heights) == 2:
        axes[0, 1].sharey(axes[0, 0])
    for axis in axes.flat:
        tidy(axis)
    return figure, axes


def each_series(
    rows: pd.DataFrame, points: list[dict], everything: pd.DataFrame
) -> Iterator[tuple[np.ndarray, pd.DataFrame, dict]]:
    """Each series of `rows` on the panel's points (nan where a cell is missing): places, values, look.

    Places and look are those of the whole panel; series stand a little apart, so that their intervals can be seen.
    """
    names = series_names(everything)
    styles = system_styles([system for system, _, _ in names])
    aside = DODGE * (np.arange(len(names)) - (len(names) - 1) / 2)
    for ((system, engine, precision), name), shift in zip(names.items(), aside, strict=True):
        mine = select(rows, system=system, engine=engine, precision=precision)
        if mine.empty:
            continue
        twins = [key for key in names if key[0] == system]
        colour, marker = styles[system]
        line = LINES[twins.index((system, engine, precision)) % len(LINES)] if ordered({"points": points}) else "none"
        yield (
            np.arange(len(points)) + shift,
            mine.set_index("x").reindex([point["x"] for point in points]),
            {"color": colour, "marker": marker, "linestyle": line, "label": name},
        )


def draw_series(
    axis: Axes, rows: pd.DataFrame, points: list[dict], everything: pd.DataFrame, floor: Floor | None = None
) -> None:
    """Every system's points, joined along the ordered factor, with the interval on each; grey inside the floor."""
    for place, mine, look in each_series(rows, points, everything):
        error = np.abs(mine[BOUNDS].to_numpy().T - mine["value"].to_numpy())
        error[error == 0] = np.nan  # a simulated number has no bar
        axis.errorbar(place, mine["value"], error, **look, **LINE)
        grey = np.array([within_floor(low, high, floor) for low, high in mine[BOUNDS].to_numpy()])
        if grey.any():
            over = LINE | UNCLAIMED | {"marker": look["marker"], "label": HIDDEN}
            axis.errorbar(place[grey], mine["value"][grey], error[:, grey], **over)


def draw_floor(axis: Axes, floor: Floor | None) -> None:
    """The line of equal time, and around it what a system measured twice differs from itself."""
    axis.axhline(1, color="black", linewidth=0.9, zorder=0.5)
    if floor:
        axis.axhspan(1 / (1 + floor.value), 1 + floor.value, color="#d9d9d9", linewidth=0, zorder=0.4)


def draw_marks(axis: Axes, marks: Sequence[Marks], points: list[dict], everything: pd.DataFrame) -> None:
    """Numbers from elsewhere as hollow markers around ours."""
    position = {point["x"]: index for index, point in enumerate(points)}
    styles, hollow = system_styles(list(everything["system"].unique())), []
    for one in marks:
        colour, marker = styles[one.system]
        line, size = ((0, (4, 3)), 7) if one.dashed else ((0, (1, 2)), 9)
        look = {"color": colour, "marker": marker, "markerfacecolor": "none", "linestyle": line, "label": one.name}
        places = [position[x] for x in one.values]
        hollow += axis.plot(places, list(one.values.values()), linewidth=1, markersize=size, zorder=1, **look)
    place = {"loc": "lower left", "bbox_to_anchor": (-0.03, 0.985), "borderaxespad": 0.0, "columnspacing": 1.0}
    if hollow:
        axis.legend(handles=hollow, ncols=2, frameon=False, fontsize=SMALL, handletextpad=0.4, **place)


def finish_times(axis: Axes, rows: pd.DataFrame, x_name: str, points: list[dict]) -> None:
    """A log axis in ms, and the points evenly spaced whatever their distance."""
    low, high = shown_range(rows)
    room = max((high / low) ** 0.14, 1.1)
    time_axis(axis, low / room, high * room)
    axis.set_xticks(range(len(points)), [tick_label(x_name, point) for point in points])
    axis.tick_params(axis="x", labelsize=5.9 if any(map(rescaled, points)) else SMALL)
    axis.set_xlim(-0.45, len(points) - 0.55)
    axis.set_xlabel(axis_name(x_name), fontsize=FONT)


def rescaled(point: dict) -> bool:
    """Whether a point stands for one of the paper's at another x."""
    return point["published_x"] not in (None, point["x"])


def tick_label(x_name: str, point: dict) -> str:
    """`25`, with the paper's value below where the scale changed it."""
    text = x_text(x_name, point["x"])
    return f"{text}\n(paper: {x_text(x_name, point['published_x'])})" if rescaled(point) else text


def print_times(axis: Axes, rows: pd.DataFrame, baseline: str | None, points: list[dict]) -> None:
    """The baseline's absolute times as numbers beside its points, on the side where fewer systems are."""
    position = {point["x"]: index for index, point in enumerate(points)}
    columns, (bottom, top) = ["x", "value", *BOUNDS], shown_range(rows)
    for x, value, low, high in rows.loc[rows["system"] == baseline, columns].itertuples(index=False):
        others = rows.loc[(rows["x"] == x) & (rows["system"] != baseline), "value"]
        above = (others > value).mean() <= 0.5 if len(others) else True
        at = (position[x], np.nanmax([value, min(high, top)]) if above else np.nanmin([value, max(low, bottom)]))
        place = {"xytext": (-1, 5 if above else -5), "va": "bottom" if above else "top", "ha": "center"}
        text = axis.annotate(number(value), at, textcoords="offset points", fontsize=SMALL, zorder=5, **place)
        text.set_path_effects(HALO)
