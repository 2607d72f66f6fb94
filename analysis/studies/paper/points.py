"""The points that a claim is judged on: ours, from a campaign, and the authors' own."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.frames import select
from analysis.labels import series_names
from analysis.load import Campaign
from analysis.reduce import gini, load_cube
from analysis.stats import median_interval
from analysis.studies.paper.judges import Points, Ratio
from analysis.studies.paper.reference import (
    PAPER_POINT,
    Reference,
    recomputed_layer,
    recomputed_layers,
    recomputed_ttft,
    recorded_loads,
    same_series,
)
from analysis.summary import ITERATIONS, LAUNCHES

PAPER_TOKENS = 30_000  # of a layer and GPU: batch 250 of 120 tokens
# Judges of how far single points are from 1x; the others compare points with one another.
EFFECTS = {"slower_at", "faster_at", "ratio_at", "at_least", "always_faster", "highest"}
RECOMPUTED = {"speedup_layer_paper": recomputed_layer, "speedup_ttft": recomputed_ttft}
Found = tuple[str, Points, bool]  # name of the series, its points, whether all of them may be claimed


def paper_points(claim: dict, metric: str, reference: Reference) -> Points:
    """The authors' own points for a claim: values without intervals; {} where their data has none."""
    if claim["series"] == "load":
        tokens_ILE, layers = recorded_loads(reference.traces, claim["needs"]["num_experts"])
        return expert_points(metric, tokens_ILE, layers) if layers else {}
    if metric == "speedup_by_layer":
        at_128 = {"x_name": "num_experts", "x": PAPER_POINT["num_experts"], "baseline": "deepspeed"}
        layers = recomputed_layers(reference.runs, at_128 | {"system": "moeshard", "engine": "megablocks"})
        return {layer: Ratio(ratio, ratio, ratio) for layer, ratio in layers.items()}
    if metric not in RECOMPUTED:
        return {}
    rows = select(reference.figures, figure=claim["figure"]).to_dict("records")

    def of_engine(engine: str) -> dict:
        return {row["x"]: RECOMPUTED[metric](reference.runs, row | {"engine": engine}) for row in rows}

    values = of_engine("loop" if claim["series"] == "loop" else "megablocks")
    if claim["series"] == "fused/loop":
        loop = of_engine("loop")
        values = {x: value / loop[x] for x, value in values.items()}
    return {x: Ratio(value, value, value) for x, value in values.items()}


def series_points(
    claim: dict, metric: str, campaign: Campaign, summary: pd.DataFrame, panels: list[dict]
) -> Iterator[Found]:
    """Every series of ours that the claim is about; once, where several panels show the same figure."""
    if claim["series"] == "load":
        yield from load_points(metric, campaign, panels)
        return
    found = set()
    for panel in panels:
        here = select(summary, experiment=panel["name"])
        if claim["series"] == "fused/loop":
            yield from fused_over_loop(select(here, metric=metric), panel)
            continue
        baseline = campaign.plan.get("baseline")
        mine = select(here, system=baseline) if claim["series"] == "baseline" else same_series(here, "moeshard", "")
        mine = mine if claim["series"] != "loop" else same_series(here, "moeshard", "loop")
        for (system, engine, precision), name in series_names(mine).items():
            rows = select(mine, system=system, engine=engine, precision=precision, metric=metric)
            if len(rows) and name in found:
                continue
            found |= {name} if len(rows) else set()
            yield name, points_of(rows, panel), may_claim(claim, rows, panel)


def may_claim(claim: dict, rows: pd.DataFrame, panel: dict) -> bool:
    """Enough was measured, and where the claim is an effect at a point, or at all, that is no noise."""
    if claim["judge"] not in EFFECTS:
        return enough(rows)
    published = {point["published_x"]: point["x"] for point in panel["points"]}
    x = claim.get("with", {}).get("x")
    rows = rows if x is None else select(rows, x=published.get(x))
    return bool(len(rows) and rows["claimable"].all())


def enough(rows: pd.DataFrame) -> bool:
    """Whether every row comes from tier full, with the launches and iterations that claims rest on."""
    counts = rows["launches"] >= LAUNCHES, rows["n"] >= ITERATIONS
    return bool(len(rows) and (rows["tier"] == "full").all() and counts[0].all() and counts[1].all())


def points_of(rows: pd.DataFrame, panel: dict) -> Points:
    """By the paper's x, or by layer where the metric has one."""
    published = {point["x"]: point["published_x"] for point in panel["points"]}
    points = {}
    for row in rows.to_dict("records"):
        key = published[row["x"]] if pd.isna(row["layer"]) else row["layer"]
        # What is counted has no interval and its value stands for it; a time without one shows nothing for sure.
        counted = not str(row["metric"]).startswith("speedup")
        names = ("value", "ci_low", "ci_high")
        bounds = [row["value"] if counted and np.isnan(row[name]) else row[name] for name in names]
        points |= {} if key is None else {key: Ratio(*bounds)}
    return points


def fused_over_loop(rows: pd.DataFrame, panel: dict) -> Iterator[Found]:
    """Speed-up of each fused series over the loop; its interval spans whatever both intervals allow."""
    fused, loops = same_series(rows, "moeshard", ""), same_series(rows, "moeshard", "loop")
    looped = points_of(loops, panel)
    for (system, engine, precision), name in series_names(fused).items() if looped else ():
        mine = select(fused, system=system, engine=engine, precision=precision)
        ratios = {
            x: Ratio(one.value / looped[x].value, one.low / looped[x].high, one.high / looped[x].low)
            for x, one in points_of(mine, panel).items()
            if x in looped
        }
        yield f"{name} / loop", ratios, enough(mine) and enough(loops)


def load_points(metric: str, campaign: Campaign, panels: list[dict]) -> Iterator[Found]:
    """The load of experts by layer, from the first ok cell of the panels: all cells of a point route alike."""
    cells = [c for panel in panels for point in panel["points"] for c in point["cells"] if c in campaign.frames]
    for cell in cells[:1]:
        run = campaign.runs[cell]
        routing = campaign.routing(cell)
        tokens_ILE = load_cube(routing, run["point"]["num_experts"])
        layers = sorted(routing["layer"].unique())
        name = f"router {run['config']['router']['name']}"
        yield name, expert_points(metric, tokens_ILE, layers), run["tier"] == "full"


def expert_points(metric: str, tokens_ILE: np.ndarray, layers: list[int]) -> Points:
    """One of the metrics of Figure 1 by layer, tokens scaled to the paper's number."""
    if metric == "gini_last_over_first":
        gini_IL = gini(tokens_ILE)
        return {layers[-1]: Ratio(*median_interval([gini_IL[:, -1] / gini_IL[:, 0]]))}
    scaled_ILE = tokens_ILE / tokens_ILE.sum(axis=-1, keepdims=True) * PAPER_TOKENS
    values_IL = (tokens_ILE == 0).sum(axis=-1) if metric == "empty_experts" else scaled_ILE.max(axis=-1)
    return {layer: Ratio(*median_interval([values_IL[:, at]])) for at, layer in enumerate(layers)}
