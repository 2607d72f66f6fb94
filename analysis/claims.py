"""What the paper says in words, judged on a campaign's points and on the authors' own numbers.

The claims stand in results/reference/paper_claims.yaml, the rules in analysis/judges.py.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import yaml

from analysis.frames import select
from analysis.hardware import on_device
from analysis.judges import NOT_MEASURED, NOT_TESTABLE, NOTHING, Points, Ratio, apply
from analysis.labels import series_names
from analysis.load import Campaign, simulated_on
from analysis.reduce import gini, load_cube
from analysis.reference import (
    FOLDER,
    PAPER_POINT,
    Reference,
    load_reference,
    recomputed_layer,
    recomputed_layers,
    recomputed_ttft,
    recorded_loads,
    same_series,
)
from analysis.stats import median_interval
from analysis.summary import ITERATIONS, LAUNCHES

COLUMNS = [
    *["id", "claim", "figure", "kind", "published", "recomputed", "ours", "verdict", "claimable", "cause", "series"],
    *["simulated", "on simulated", "simulated series", "device", "metric", "where", "transfer"],
]
SHORT = {"speedup_layer_paper": "layer", "speedup_ttft": "TTFT", "speedup_by_layer": "layer"}
PAPER_TOKENS = 30_000  # of a layer and GPU: batch 250 of 120 tokens
# Judges of how far single points are from 1x; the others compare points with one another.
EFFECTS = {"slower_at", "faster_at", "ratio_at", "at_least", "always_faster", "highest"}
RECOMPUTED = {"speedup_layer_paper": recomputed_layer, "speedup_ttft": recomputed_ttft}
Found = tuple[str, Points, bool]  # name of the series, its points, whether all of them may be claimed


def load_claims() -> list[dict]:
    """The paper's claims, as results/reference/paper_claims.yaml describes them."""
    return yaml.safe_load((FOLDER / "paper_claims.yaml").read_text())["claims"]


def load_causes() -> dict[str, str]:
    """The likely cause by verdict, of single points of Figures 3 and 4."""
    return yaml.safe_load((FOLDER / "paper_claims.yaml").read_text())["points"]["causes"]


def claims_table(campaign: Campaign, summary: pd.DataFrame, reference: Reference | None = None) -> pd.DataFrame:
    """One row for each claim, metric and series of ours, in COLUMNS; a claim without points is a row too.

    Empty when no panel stands for anything in the paper.

    recomputed: what the same rule says of the authors' own runs. claimable: all points it rests on are. Of simulated
    panels stands in each row of a claim: simulated, what its rule gives for the form of the method that is nearest to
    the authors' (`simulated series`); on simulated, whether the claim holds there; device.
    """
    reference, known = reference or load_reference(), load_claims()
    if not any(shows(panel, claim["figure"]) for panel in campaign.plan["panels"] for claim in known):
        return pd.DataFrame(columns=COLUMNS)
    rows = [
        row
        for claim in known
        for metric in claim["metrics"]
        for row in claim_rows(claim, metric, campaign, summary, reference)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def claim_rows(
    claim: dict, metric: str, campaign: Campaign, summary: pd.DataFrame, reference: Reference
) -> Iterator[dict]:
    """The rows of one claim and metric."""
    row = {name: claim[name] for name in ("id", "figure", "kind", "published", "where", "transfer")}
    row |= {"claim": name_of(claim, metric), "metric": metric}
    row["recomputed"] = apply(claim, paper_points(claim, metric, reference))[0]
    claim = like_with_like(claim, metric, reference)
    panels = [panel for panel in campaign.plan["panels"] if shows(panel, claim["figure"])]
    simulated = [panel for panel in panels if simulated_on(campaign, panel)]
    panels = [panel for panel in panels if panel not in simulated]
    there = [] if untestable(claim, campaign, simulated) else series_points(claim, metric, campaign, summary, simulated)
    device = simulated_on(campaign, simulated[0]) if simulated else ""
    row |= on_device(claim, metric, {name: points for name, points, _ in there if points}, device)
    why = untestable(claim, campaign, panels)
    found = [] if why else list(series_points(claim, metric, campaign, summary, panels))
    for series, points, claimable in found or [(NOTHING, {}, False)]:
        ours, verdict = (why, NOT_TESTABLE) if why else apply(claim, points)
        cause = " ".join(claim["causes"][key] for key in (verdict, "recomputed") if key in claim.get("causes", {}))
        measured = verdict not in (NOT_MEASURED, NOT_TESTABLE)
        yield row | {
            "ours": ours,
            "verdict": verdict,
            "claimable": claimable and measured,
            "cause": cause,
            "series": series,
        }


def like_with_like(claim: dict, metric: str, reference: Reference) -> dict:
    """The claim with the number that our metric is to be held against.

    What the paper prints as TTFT are layer ratios, so our TTFT is held against the authors' full forward passes.
    """
    if metric != "speedup_ttft" or claim["judge"] not in ("ratio_at", "highest"):
        return claim
    points = paper_points(claim, metric, reference)
    x = claim["with"].get("x")
    value = points[x].value if x in points else max(point.value for point in points.values())
    return claim | {"with": claim["with"] | {"published": value}}


def name_of(claim: dict, metric: str) -> str:
    """The claim, and which metric where it has several."""
    return claim["text"] + (f" ({SHORT[metric]})" if len(claim["metrics"]) > 1 else "")


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
    rows = select(reference.figures, figure=claim["figure"].replace("4", "3")).to_dict("records")

    def of_engine(engine: str) -> dict:
        return {row["x"]: RECOMPUTED[metric](reference.runs, row | {"engine": engine}) for row in rows}

    values = of_engine("loop" if claim["series"] == "loop" else "megablocks")
    if claim["series"] == "fused/loop":
        loop = of_engine("loop")
        values = {x: value / loop[x] for x, value in values.items()}
    return {x: Ratio(value, value, value) for x, value in values.items()}


def shows(panel: dict, figure: str) -> bool:
    """Whether a panel stands for a figure of the paper."""
    return figure in panel.get("published", []) or panel.get("kind") == figure


def untestable(claim: dict, campaign: Campaign, panels: list[dict]) -> str:
    """Why a campaign that has the panel can say nothing on the claim; "" when it can, or has not got the panel."""
    cells = [cell for panel in panels for point in panel["points"] for cell in point["cells"]]
    runs = [campaign.runs[cell] for cell in cells if cell in campaign.frames]
    needs = claim.get("needs", {})
    if not runs or not needs:
        return ""
    device = runs[0]["config"]["cluster"]["device"]
    router = runs[0]["config"]["router"]["_target_"].rpartition(".")[2]
    if "device" in needs and device != needs["device"]:
        return f"needs {needs['device']}, here {device}"
    if "router" in needs and not any(name in router.lower() for name in needs["router"]):
        return f"needs a {' or '.join(needs['router'])} router, here {router}"
    if "num_experts" in needs and all(run["point"]["num_experts"] != needs["num_experts"] for run in runs):
        return f"needs {needs['num_experts']} experts"
    return ""


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
        name = f"router {run['config']['router']['_target_'].rpartition('.')[2]}"
        yield name, expert_points(metric, tokens_ILE, layers), run["tier"] == "full"


def expert_points(metric: str, tokens_ILE: np.ndarray, layers: list[int]) -> Points:
    """One of the metrics of Figure 1 by layer, tokens scaled to the paper's number."""
    if metric == "gini_last_over_first":
        gini_IL = gini(tokens_ILE)
        return {layers[-1]: Ratio(*median_interval([gini_IL[:, -1] / gini_IL[:, 0]]))}
    scaled_ILE = tokens_ILE / tokens_ILE.sum(axis=-1, keepdims=True) * PAPER_TOKENS
    values_IL = (tokens_ILE == 0).sum(axis=-1) if metric == "empty_experts" else scaled_ILE.max(axis=-1)
    return {layer: Ratio(*median_interval([values_IL[:, at]])) for at, layer in enumerate(layers)}
