"""What the paper says in words, judged on a campaign's points and on the authors' own numbers.

The claims stand in results/reference/paper_claims.yaml, the rules in judges.py beside this file.
"""

from collections.abc import Iterator

import pandas as pd
import yaml

from analysis.load import Campaign, simulated_on
from analysis.studies.paper.hardware import on_device
from analysis.studies.paper.judges import NOT_MEASURED, NOT_TESTABLE, NOTHING, apply
from analysis.studies.paper.points import paper_points, series_points
from analysis.studies.paper.reference import FOLDER, Reference, load_reference

COLUMNS = [
    *["id", "claim", "figure", "kind", "published", "recomputed", "ours", "verdict", "claimable", "cause", "series"],
    *["simulated", "on simulated", "simulated series", "device", "metric", "where", "transfer"],
]
SHORT = {"speedup_layer_paper": "layer", "speedup_ttft": "TTFT", "speedup_by_layer": "layer"}


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
    router = runs[0]["config"]["router"]["name"]
    if "device" in needs and device != needs["device"]:
        return f"needs {needs['device']}, here {device}"
    if "router" in needs and router not in needs["router"]:
        return f"needs a {' or '.join(needs['router'])} router, here {router}"
    if "num_experts" in needs and all(run["point"]["num_experts"] != needs["num_experts"] for run in runs):
        return f"needs {needs['num_experts']} experts"
    return ""
