"""A panel as a figure: speed-up above, absolute time below; one MoE layer left, the full forward pass right."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.frames import select
from analysis.labels import axis_name, number, series_names, system_name, system_styles
from analysis.reduce import single
from analysis.reference import same_series

GREY = "#777777"
LINES = ["-", "--", ":", "-."]
LINE = {
    "linewidth": 1.4,
    "markersize": 5,
    "markeredgecolor": "white",
    "markeredgewidth": 0.5,
    "capsize": 2,
    "elinewidth": 1,
}
FONT, SMALL = 8.5, 7.5
WIDTH = 6.67  # inches: 1000 pixels at 150 dpi
# Title of the column, its speed-up, its time, the published column that stands beside it, and what that is.
COLUMNS = [
    ("One MoE layer", "speedup_layer_paper", "layer_moe_ms", "published", "published, 4×A100"),
    ("Full forward pass (TTFT)", "speedup_ttft", "ttft_ms", "recomputed_ttft", "authors' raw data, 4×A100"),
]


def plot_panel(
    summary: pd.DataFrame,
    panel: dict,
    published: pd.DataFrame,
    path: Path,
    *,
    baseline: str | None = None,
    note: str = "",
) -> list[Path]:
    """Draw one panel to `path`.png and `path`.pdf.

    summary: rows of `summarise`. published: rows of `published_points`, may be empty. note: sentences under the axes.
    Without speed-ups in the panel only the row of absolute times is drawn. Raises ValueError when sources are mixed.
    """
    summary, published = select(summary, experiment=panel["name"]), select(published, experiment=panel["name"])
    single(summary, "source")
    points = sorted(panel["points"], key=lambda point: point["x"]) if ordered(panel) else panel["points"]
    compared = {speedup for _, speedup, *_ in COLUMNS} & set(summary["metric"])
    heights = [1.25, 1.0] if compared else [1.0]
    figure, axes = empty_figure(heights, max(map(len, series_names(summary).values()), default=0))
    for axis_column, (title, speedup, time_ms, value, source) in zip(axes.T, COLUMNS, strict=True):
        if compared:
            axis_column[0].axhline(1, color="black", linewidth=0.9, zorder=0.5)
            draw_series(axis_column[0], select(summary, metric=speedup), points, summary)
            draw_published(axis_column[0], published, points, summary, value, source)
        draw_series(axis_column[-1], select(summary, metric=time_ms), points, summary)
        print_times(axis_column[-1], select(summary, metric=time_ms), baseline, points)
        finish_times(axis_column[-1], panel["x_name"], points)
        axis_column[0].set_title(title, fontsize=FONT, loc="left", fontweight="bold", pad=6 if published.empty else 18)
    if compared:
        finish_speedup(axes[0, 0])
        axes[0, 0].set_ylabel(f"speed-up over {system_name(baseline or 'baseline')}", fontsize=FONT)
    axes[-1, 0].set_ylabel("ms, log scale", fontsize=FONT)
    figure.align_ylabels()
    for axis in axes[:, -1]:
        label_lines(axis)
    subject = f"speed-up over {system_name(baseline)}" if baseline and compared else "time"
    return save(figure, f"{panel['title']}: {subject} against {axis_name(panel['x_name'])}", note, path)


def ordered(panel: dict) -> bool:
    """Whether the panel's factor is a number; only then are its points joined."""
    return all(isinstance(point["x"], int | float) for point in panel["points"])


def empty_figure(heights: list[float], longest_name: int) -> tuple[Figure, np.ndarray]:
    """A 1000 pixel wide figure with two columns; the speed-ups share their y axis, to be compared across columns."""
    height = 1.85 + 1.95 * sum(heights)
    figure = Figure(figsize=(WIDTH, height), dpi=150)
    FigureCanvasAgg(figure)
    margin = min(0.25 + longest_name * 0.6 * SMALL / 72, 2.2)
    figure.subplots_adjust(left=0.62 / WIDTH, right=1 - margin / WIDTH, top=1 - 0.82 / height, bottom=1.0 / height)
    figure.subplots_adjust(hspace=0.1, wspace=0.2)
    axes = figure.subplots(len(heights), 2, sharex="all", squeeze=False, height_ratios=heights)
    if len(heights) == 2:
        axes[0, 1].sharey(axes[0, 0])
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=SMALL, length=2.5)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def each_series(
    rows: pd.DataFrame, points: list[dict], everything: pd.DataFrame
) -> Iterator[tuple[pd.DataFrame, dict]]:
    """Each series of `rows` on the panel's points (nan where a cell is missing), with its look in the whole panel."""
    names = series_names(everything)
    styles = system_styles([system for system, _, _ in names])
    for (system, engine, precision), name in names.items():
        mine = select(rows, system=system, engine=engine, precision=precision)
        if mine.empty:
            continue
        twins = [key for key in names if key[0] == system]
        colour, marker = styles[system]
        line = LINES[twins.index((system, engine, precision)) % len(LINES)] if ordered({"points": points}) else "none"
        yield (
            mine.set_index("x").reindex([point["x"] for point in points]),
            {"color": colour, "marker": marker, "linestyle": line, "label": name},
        )


def draw_series(axis: Axes, rows: pd.DataFrame, points: list[dict], everything: pd.DataFrame) -> None:
    """Every system's points, joined along the ordered factor, with the interval on each."""
    for mine, look in each_series(rows, points, everything):
        error = np.abs(mine[["ci_low", "ci_high"]].to_numpy().T - mine["value"].to_numpy())
        axis.errorbar(range(len(points)), mine["value"], error, **look, **LINE)


def draw_published(
    axis: Axes, published: pd.DataFrame, points: list[dict], everything: pd.DataFrame, value: str, source: str
) -> None:
    """Published points as hollow markers around ours, for the series that the campaign has."""
    position = {point["x"]: index for index, point in enumerate(points)}
    styles = system_styles(list(everything["system"].unique()))
    hollow = []
    series = published[["system", "engine"]].drop_duplicates().itertuples(index=False, name=None)
    for system, engine in series:
        rows = select(published, system=system, engine=engine)
        beside = same_series(everything, system, engine)["system"].unique()
        if not len(beside):
            continue
        colour, marker = styles[beside[0]]
        name = source if engine != "loop" else "the same, loop" if hollow else f"{source}, loop"
        line, size = ((0, (4, 3)), 7) if engine == "loop" else ((0, (1, 2)), 9)
        look = {"color": colour, "marker": marker, "markerfacecolor": "none", "linestyle": line, "label": name}
        hollow += axis.plot(
            [position[x] for x in rows["x"]], rows[value], linewidth=1, markersize=size, zorder=1, **look
        )
    place = {"loc": "lower left", "bbox_to_anchor": (-0.03, 0.985), "borderaxespad": 0.0, "columnspacing": 1.0}
    axis.legend(handles=hollow, ncols=2, frameon=False, fontsize=SMALL, handletextpad=0.4, **place)


def finish_speedup(axis: Axes) -> None:
    """A log2 axis with ticks such as 0.25×; both columns share it, so it is set after both are drawn."""
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}×"))
    axis.yaxis.set_minor_locator(NullLocator())
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.45), max(high, 2.2))


def finish_times(axis: Axes, x_name: str, points: list[dict]) -> None:
    """A log axis in ms, and the points evenly spaced whatever their distance."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(low / (high / low) ** 0.1, high * (high / low) ** 0.12)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xticks(range(len(points)), [tick_label(point) for point in points])
    axis.tick_params(axis="x", labelsize=5.9 if any(map(rescaled, points)) else SMALL)
    axis.set_xlim(-0.45, len(points) - 0.55)
    axis.set_xlabel(axis_name(x_name), fontsize=FONT)


def rescaled(point: dict) -> bool:
    return point["published_x"] not in (None, point["x"])


def tick_label(point: dict) -> str:
    """`25`, with the paper's value below where the scale changed it."""
    return f"{point['x']}\n(paper: {point['published_x']})" if rescaled(point) else f"{point['x']}"


def print_times(axis: Axes, rows: pd.DataFrame, baseline: str | None, points: list[dict]) -> None:
    """The baseline's absolute times as numbers beside its points, on the side where fewer systems are."""
    position = {point["x"]: index for index, point in enumerate(points)}
    for x, value, low, high in rows.loc[rows["system"] == baseline, ["x", "value", "ci_low", "ci_high"]].to_numpy():
        others = rows.loc[(rows["x"] == x) & (rows["system"] != baseline), "value"]
        above = (others > value).mean() <= 0.5 if len(others) else True
        at = (position[x], np.nanmax([value, high]) if above else np.nanmin([value, low]))
        place = {"xytext": (-1, 5 if above else -5), "va": "bottom" if above else "top", "ha": "center"}
        text = axis.annotate(number(value), at, textcoords="offset points", fontsize=SMALL, zorder=5, **place)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def label_lines(axis: Axes) -> None:
    """Names of the series in the right margin, level with their last points, moved apart where they would touch."""
    ends = {}
    for container in axis.containers:
        line = container[0]
        heights = np.asarray(line.get_ydata(), dtype=float)
        last = heights[np.isfinite(heights)][-1]
        ends[container.get_label()] = (axis.transData.transform((0, last))[1], line.get_color())
    heights = spread([height for height, _ in ends.values()], gap=SMALL * 1.3 * axis.figure.dpi / 72)
    for (name, (_, colour)), height in zip(ends.items(), heights, strict=True):
        fraction = axis.transAxes.inverted().transform((0, height))[1]
        axis.text(1.03, fraction, name, color=colour, fontsize=SMALL, va="center", transform=axis.transAxes)


def spread(heights: list[float], gap: float) -> list[float]:
    """Heights at least `gap` apart, in their order and about their mean."""
    order = np.argsort(heights, kind="stable")
    raised = np.array(heights, dtype=float)[order]
    for i in range(1, len(raised)):
        raised[i] = max(raised[i], raised[i - 1] + gap)
    moved = np.empty_like(raised)
    moved[order] = raised - (raised.mean() - np.mean(heights)) if len(raised) else raised
    return moved.tolist()


def save(figure: Figure, title: str, note: str, path: Path) -> list[Path]:
    height = figure.get_figheight()
    figure.text(0.015, 1 - 0.1 / height, title, fontsize=10.5, fontweight="bold", va="top")
    figure.text(
        0.015,
        0.08 / height,
        textwrap.fill(note, 125, max_lines=3, placeholder=" …"),
        fontsize=6.8,
        color=GREY,
        va="bottom",
    )
    paths = [path.with_name(f"{path.name}{suffix}") for suffix in (".png", ".pdf")]
    for target in paths:
        figure.savefig(target, metadata={"CreationDate": None} if target.suffix == ".pdf" else {})
    return paths
