"""Expected against obtained: the paper's points beside ours, each with a verdict computed from the data."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.frames import select
from analysis.labels import series_names, system_name
from analysis.load import SIMULATED
from analysis.model_error import tie_bands
from analysis.studies.paper.judges import NOT_VALIDATED, WITHIN_ERROR, point_verdict
from analysis.studies.paper.reference import same_series

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
        judged = judged_point(point["published"], select(rows, metric=METRICS["layer"]), ours)
        yield point | {"series": name, "engine": key[1], "precision": key[2]} | ours | judged


def judged_point(published: float, rows: pd.DataFrame, ours: dict[str, float]) -> dict:
    """Verdict on a layer ratio, and whether it may be claimed; simulated ones near 1x are within the model's error."""
    verdict = point_verdict(published, ours["layer"], ours["layer_low"], ours["layer_high"])
    claimable = bool(rows["claimable"].any())
    if set(rows["source"]) != {SIMULATED} or claimable:
        return {"verdict": verdict, "claimable": claimable}
    known = tie_bands(rows["device"].iloc[0])
    return {"verdict": WITHIN_ERROR if known else NOT_VALIDATED, "claimable": bool(known)}


def interval_columns(short: str, rows: pd.DataFrame) -> dict[str, float]:
    """`short`, `short`_low and `short`_high of the one row there is; nan without one."""
    value, low, high = rows[["value", "ci_low", "ci_high"]].to_numpy()[0] if len(rows) else [np.nan] * 3
    return {short: value, f"{short}_low": low, f"{short}_high": high}
