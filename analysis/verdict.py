"""Expected against obtained: the paper's points beside ours, each with a verdict computed from the data."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from analysis.claims import DIRECTION, FAILED, NOT_MEASURED, REPRODUCED, claims_table
from analysis.frames import select
from analysis.labels import series_names, short_axis_name, system_name, times, with_interval
from analysis.reference import same_series

COLOURS = {REPRODUCED: "green", DIRECTION: "yellow", FAILED: "red", NOT_MEASURED: "bright_black"}
TOLERANCE = 0.25
# Short name of a ratio in the table's columns, and the metric. The paper's points are compared with the first.
METRICS = {"layer": "speedup_layer_paper", "ttft": "speedup_ttft"}


def verdict_table(summary: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """One row for each published point and series of ours: published, recomputed, ours with intervals, verdict.

    reference: rows of `published_points`. The verdict compares like with like, the paper's layer ratio with ours. The
    points of Figure 4 without MegaBlocks appear only where the campaign ran the loop engine.
    """
    return pd.DataFrame([row for point in reference.to_dict("records") for row in point_rows(summary, point)])


def point_rows(summary: pd.DataFrame, point: dict) -> Iterator[dict]:
    """The rows of one published point: one for each of our series that it stands beside."""
    here = select(summary, experiment=point["experiment"])
    beside = same_series(here, point["system"], point["engine"])
    keys = {key: name for key, name in series_names(here).items() if key in set(series_names(beside))}
    if not keys and point["engine"] != "loop":
        keys = {(point["system"], "", ""): system_name(point["system"])}
    for key, name in keys.items():
        rows = select(here, system=key[0], engine=key[1], precision=key[2], x=point["x"])
        ours = {}
        for short, metric in METRICS.items():
            ours |= interval_columns(short, select(rows, metric=metric))
        verdict = point_verdict(point["published"], ours["layer"], ours["layer_low"], ours["layer_high"])
        yield point | {"series": name, "engine": key[1], "precision": key[2]} | ours | {"verdict": verdict}


def interval_columns(short: str, rows: pd.DataFrame) -> dict[str, float]:
    """`short`, `short`_low and `short`_high of the one row there is; nan without one."""
    value, low, high = rows[["value", "ci_low", "ci_high"]].to_numpy()[0] if len(rows) else [np.nan] * 3
    return {short: value, f"{short}_low": low, f"{short}_high": high}


def point_verdict(published: float, value: float, low: float, high: float) -> str:
    """Reproduced: within 25 %, or in an interval no wider than a factor of 2; direction only: the same side of 1x.

    A wide interval holds anything and reproduces nothing.
    """
    if np.isnan(value):
        return NOT_MEASURED
    if (low <= published <= high and high <= 2 * low) or abs(value / published - 1) <= TOLERANCE:
        return REPRODUCED
    return DIRECTION if (value > 1) == (published > 1) else FAILED


def print_verdicts(verdicts: pd.DataFrame, console: Console) -> None:
    """The points, a table for each panel, and the paper's qualitative claims below them."""
    for experiment, rows in verdicts.groupby("experiment", sort=False):
        console.print(points_table(str(experiment), rows))
    claims = claims_table(verdicts)
    if len(claims):
        console.print(claims_rich(claims))


def plain_table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def points_table(experiment: str, rows: pd.DataFrame) -> Table:
    """One panel's points; the paper's x in brackets where the scale changed it."""
    rescaled = rows["x"].tolist() != rows["published_x"].tolist()
    several = len(rows["series"].unique()) > 1
    table = plain_table(f"{experiment}: speed-up over {system_name(rows['baseline'].iloc[0])}, published against ours")
    table.add_column(short_axis_name(rows["x_name"].iloc[0]) + (" (paper)" if rescaled else ""), justify="right")
    if several:
        table.add_column("system")
    for name in ("published", "ours, layer", "verdict", "recomputed\nTTFT", "ours, TTFT"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    for row in rows.to_dict("records"):
        x = f"{row['x']} ({row['published_x']})" if rescaled else f"{row['x']}"
        layer, ttft = (with_interval(row[m], row[f"{m}_low"], row[f"{m}_high"], times) for m in METRICS)
        cells = [times(row["published"]), layer, coloured(row["verdict"]), times(row["recomputed_ttft"]), ttft]
        table.add_row(x, *([row["series"]] if several else []), *cells)
    return table


def claims_rich(claims: pd.DataFrame) -> Table:
    table = plain_table("What the paper says of Figure 3")
    several = len(claims["series"].unique()) > 1
    for name in ("claim", *(["system"] if several else []), "ours, layer", "verdict", "ours, TTFT", "verdict"):
        table.add_column(name)
    for row in claims.to_dict("records"):
        judged = [row["layer"], coloured(row["layer_verdict"]), row["ttft"], coloured(row["ttft_verdict"])]
        table.add_row(row["claim"], *([row["series"]] if several else []), *judged)
    return table


def coloured(verdict: str) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]"
