"""A map over two factors: the winner's colour at every point, its margin as text, the border, and where practice lies.

Points are evenly spaced cells in the order of their values; what lies between two values stands between their cells.
"""

import textwrap
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from analysis.figures.canvas import FONT, HALO, SMALL, WIDTH, Picture, drawing, margins, new_figure, save
from analysis.labels import BLACK, GREY, axis_name, system_name, system_styles, times, x_text
from analysis.reduce import single
from analysis.stats import Floor
from analysis.studies.maps.borders import CROSSES, borders, geometric
from analysis.studies.maps.winners import ALONE, TIE, winners
from analysis.studies.maps.words import sorted_values

FULL = 2.0  # the margin from which a colour is at its strongest
PALE, STRONG = 0.18, 0.72  # share of the colour at a margin of 1x and of FULL or more
TIED: dict[str, Any] = {"facecolor": "#ececec", "edgecolor": "#bdbdbd", "hatch": "////"}
LEFT, RIGHT, TOP, BOTTOM, ROW = 0.72, 0.12, 0.88, 1.4, 0.74  # inches
FINE, FINE_ROW = 10, 0.26  # columns from which on cells have colours only, and their height
ABOVE = 0.28  # inches more where points are marked above the map
MARKERS = ["o", "D", "*", "s", "P"]  # of groups of points; every second one is hollow and stands lower


@drawing
def plot_map(
    frame: pd.DataFrame,
    path: Path,
    *,
    title: str,
    note: str = "",
    x_name: str,
    y_name: str,
    points: pd.DataFrame | None = None,
    floor: Floor | None = None,
    pair: tuple[str, str] | None = None,
    x_label: str | None = None,
    y_label: str | None = None,
) -> Picture:
    """Draw one map to `path`.png and `path`.svg.

    frame: columns x, y, system, launch, value (ms, less is better), and source if known. points: places to be marked,
    columns x, y (nan: above the map), group (a legend entry each) and label (the rightmost of a group is printed).
    pair: the systems between which the border is drawn (`rivals`). x_label, y_label: other words for the axes.
    Raises ValueError when sources are mixed.
    """
    if "source" in frame:
        single(frame, "source")
    won, found = winners(frame, floor), borders(frame, pair, floor)
    xs, ys = sorted_values(won["x"]), sorted_values(won["y"])
    above = ABOVE if points is not None and None in points["y"].replace(np.nan, None).to_list() else 0.0
    row_height = ROW if len(xs) <= FINE else FINE_ROW
    figure = new_figure(TOP + above + BOTTOM + row_height * len(ys))
    margins(figure, left=LEFT, right=RIGHT, top=TOP + above, bottom=BOTTOM)
    axis = figure.subplots()
    draw_cells(axis, won, xs, ys)
    draw_borders(axis, found, xs, ys)
    groups = draw_points(axis, points, xs, ys) if points is not None and len(points) else []
    finish(axis, xs, ys, x_name, y_name)
    axis.set_xlabel(x_label or axis_name(x_name), fontsize=FONT)
    axis.set_ylabel(y_label or axis_name(y_name), fontsize=FONT)
    draw_legend(axis, won, found, groups, above / (row_height * len(ys)))
    return save(figure, title, note, path, lines=6)


def draw_cells(axis: Axes, won: pd.DataFrame, xs: list, ys: list) -> None:
    """Colour and text of every point, of a fine map the colour; white with a dash where nothing was measured."""
    styles = system_styles(sorted(set(won["winner"])))
    rows = {(row["x"], row["y"]): row for row in won.to_dict("records")}
    for j, y in enumerate(ys):
        for i, x in enumerate(xs):
            row = rows.get((x, y))
            look = cell_look(row, styles)
            axis.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, linewidth=0, **look))
            if len(xs) > FINE:
                continue
            ground = {
                "facecolor": look["facecolor"],
                "alpha": 0.8,
                "linewidth": 0,
                "pad": 0.8,
            }  # over line and hatching
            words: dict[str, Any] = {"fontsize": min(SMALL, 7.5 * SMALL / len(xs)), "ha": "center", "va": "center"}
            axis.text(i, j, cell_text(row, len(xs)), zorder=4, bbox=ground, **words)
    grid: dict[str, Any] = {"color": "white", "linewidth": 1.2, "zorder": 1.5}
    axis.vlines(np.arange(len(xs) + 1) - 0.5, -0.5, len(ys) - 0.5, **grid)
    axis.hlines(np.arange(len(ys) + 1) - 0.5, -0.5, len(xs) - 0.5, **grid)


def cell_look(row: Mapping | None, styles: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The winner's colour, the stronger the larger its margin; hatched grey for a tie."""
    if row is None:
        return {"facecolor": "white"}
    if row["verdict"] == TIE:
        return TIED
    return {"facecolor": tinted(styles[row["winner"]][0], 1.0 if row["verdict"] == ALONE else row["margin"])}


def tinted(colour: str, margin: float) -> tuple[float, float, float]:
    """RGB of a colour on white: pale at a margin of 1x, full from FULL on."""
    strength = PALE + (STRONG - PALE) * np.clip(np.log(margin) / np.log(FULL), 0, 1)
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def cell_text(row: Mapping | None, columns: int) -> str:
    """Winner, margin and its interval, and who could not run; the words that make the map readable without colour."""
    if row is None:
        return "–"
    tied = row["verdict"] == TIE
    names = " ≈ ".join(system_name(row[place]) for place in (("winner", "second") if tied else ("winner",)))
    head = textwrap.fill(names, max(9, 84 // columns), break_on_hyphens=False, break_long_words=False)
    without = "".join(f"\nno {system_name(system)}" for system in row["without"])
    if row["verdict"] == ALONE:
        return f"only {head}{without}"
    interval = ""
    if 0 < row["low"] < row["high"] and columns <= 8:
        interval = f"\n[{times(row['low'])[:-1]}, {times(row['high'])[:-1]}]"
    return f"{head}\n{times(row['margin'])}{interval}{without}"


def draw_borders(axis: Axes, found: pd.DataFrame, xs: list, ys: list) -> None:
    """At each y that has a border: a line at its x, in a band that is its interval, joined from row to row."""
    crossing = found.loc[found["state"] == CROSSES]
    path = []
    for row in crossing.to_dict("records"):
        j = ys.index(row["y"])
        at = position(xs, row["crossing"])
        path += [(j, [at, at], [j - 0.5, j + 0.5])]
        if not np.isnan([row["low"], row["high"]]).any():
            low, high = (position(xs, np.clip(row[end], xs[0], xs[-1])) for end in ("low", "high"))
            band: dict[str, Any] = {"facecolor": BLACK, "alpha": 0.16, "linewidth": 0, "zorder": 2}
            axis.add_patch(Rectangle((low, j - 0.5), high - low, 1, **band))
            axis.vlines([low, high], j - 0.5, j + 0.5, color=BLACK, linewidth=0.7, linestyle=":", zorder=2.5)
    path.sort(key=lambda piece: piece[0])
    for (j, x_ends, y_ends), following in zip_longest(path, path[1:]):
        axis.plot(x_ends, y_ends, color=BLACK, linewidth=2, zorder=3, solid_capstyle="butt")
        if following and following[0] == j + 1:
            axis.plot([x_ends[1], following[1][0]], [j + 0.5] * 2, color=BLACK, linewidth=2, zorder=3)


def position(values: list, at: Any) -> float:
    """The place of a value on an axis of evenly spaced cells, as `borders` interpolates; a name has its cell's."""
    if at in values:
        return float(values.index(at))
    scale = np.log if geometric(values) else np.asarray
    return float(np.interp(scale(at), scale(np.array(values, dtype=float)), np.arange(len(values))))


def draw_points(axis: Axes, points: pd.DataFrame, xs: list, ys: list) -> list[Line2D]:
    """Markers at the edge of their row, groups apart, those without y above the map; handles for the legend."""
    handles = []
    for index, (group, rows) in enumerate(points.groupby("group", sort=False)):
        rows = rows.loc[[inside(xs, x) and inside(ys, y) for x, y in rows[["x", "y"]].to_numpy()]].sort_values("x")
        if rows.empty:
            continue
        up = -0.38 if index % 2 else 0.38
        at_x = [position(xs, x) for x in rows["x"]]
        at_y = [len(ys) - 0.5 if y is None or y != y else position(ys, y) + up for y in rows["y"]]
        look: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "color": BLACK, "linestyle": "none"}
        look |= {"markerfacecolor": "white" if index % 2 else BLACK, "markersize": 8 if look["marker"] == "*" else 4.5}
        look |= {"label": str(group), "markeredgewidth": 0.8, "path_effects": HALO}
        handles += axis.plot(at_x, at_y, zorder=5, clip_on=False, **look)
        print_labels(axis, rows["label"].tolist(), at_x, at_y, top=len(ys) - 0.5)
    return handles


def print_labels(axis: Axes, labels: list[str], at_x: list[float], at_y: list[float], top: float) -> None:
    """The rightmost point's label beside it; of points above the map every one, at two heights in turn."""
    look: dict[str, Any] = {"textcoords": "offset points", "fontsize": 6.2, "zorder": 5}
    for index, (label, x, y) in enumerate(zip(labels, at_x, at_y, strict=True)):
        if y == top:
            axis.annotate(label, (x, y), xytext=(0, 5 + 7 * (index % 2)), ha="center", **look)
        elif index == len(labels) - 1:
            axis.annotate(label, (x, y), xytext=(5, 0), va="center", **look)


def inside(values: list, at: Any) -> bool:
    """Whether the map has this place; a missing y stands above the map."""
    return bool(at is None or at != at or at in values or (not isinstance(at, str) and values[0] <= at <= values[-1]))


def finish(axis: Axes, xs: list, ys: list, x_name: str, y_name: str) -> None:
    """Ticks with the values of both axes."""
    axis.set_xlim(-0.5, len(xs) - 0.5)
    axis.set_ylim(-0.5, len(ys) - 0.5)
    axis.set_xticks(range(len(xs)), [x_text(x_name, x) for x in xs])
    axis.set_yticks(range(len(ys)), [x_text(y_name, y) for y in ys])
    axis.tick_params(labelsize=SMALL, length=2.5)
    axis.spines[:].set_color(GREY)


def draw_legend(axis: Axes, won: pd.DataFrame, found: pd.DataFrame, groups: list[Line2D], above: float) -> None:
    """Colours of the winners, the tie's hatching, the border and the groups of points, below the title."""
    styles = system_styles(sorted(set(won["winner"])))
    tied, crossing = (TIE in set(won["verdict"])), (CROSSES in set(found["state"]))
    clear = won.loc[won["verdict"] != TIE, "winner"]
    handles: list[Any] = [
        Patch(facecolor=tinted(styles[system][0], FULL), label=f"{system_name(system)} wins")
        for system in dict.fromkeys(clear)
    ]
    handles += [Patch(**TIED, label="tie")] if tied else []
    if crossing:
        first, second = found[["first", "second"]].iloc[0]
        label = f"border {system_name(first)} | {system_name(second)}, 95 %"
        handles.append(Line2D([], [], color=BLACK, linewidth=2, label=label))
    corner = (-LEFT / (WIDTH - LEFT - RIGHT), 1.01 + above)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": corner, "columnspacing": 1.1}
    look: dict[str, Any] = {
        "frameon": False,
        "fontsize": SMALL,
        "handletextpad": 0.4,
        "handlelength": 1.4,
        "borderaxespad": 0.2,
    }
    axis.legend(handles=[*handles, *groups], ncols=4, **place, **look)
