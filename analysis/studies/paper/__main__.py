"""`python -m analysis.studies.paper [CHECKOUT] [--campaign FOLDER]`: the paper's statistics again, beside ours.

From the authors' raw data when given a checkout of sacs-epfl/moe-inference, else from the summary of their runs in
results/reference/. Prints published | recomputed | ours | verdict | likely cause.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from analysis.labels import UNSURE, short_axis_name, times, with_interval
from analysis.load import load_campaign
from analysis.report import MARK, in_terminal
from analysis.studies.paper.authors import learned_layers, recompute
from analysis.studies.paper.claims import COLUMNS, claims_table, load_causes, load_claims, name_of
from analysis.studies.paper.hardware import hardware_sentence
from analysis.studies.paper.judges import NOT_MEASURED, NOTHING, apply
from analysis.studies.paper.points import paper_points
from analysis.studies.paper.reference import (
    Reference,
    load_reference,
    published_points,
    recomputed_layer,
    recomputed_ttft,
    runs_behind,
)
from analysis.studies.paper.tables import not_for_claims, words_table
from analysis.studies.paper.verdict import verdict_table
from analysis.summary import summarise

OWN_TOLERANCE = 0.12  # of the authors' numbers: medians instead of means make up to 11 %
OURS = {"series": NOTHING, "layer": np.nan, "layer_low": np.nan, "layer_high": np.nan, "ttft": np.nan}
OURS |= {"ttft_low": np.nan, "ttft_high": np.nan, "verdict": NOT_MEASURED, "claimable": False}


def main(arguments: list[str] | None = None) -> int:
    """Print published, recomputed and ours; 1 where a file cannot be read or does not fit."""
    parser = argparse.ArgumentParser(prog="python -m analysis.studies.paper", description=__doc__)
    parser.add_argument("checkout", nargs="?", type=Path, help="a checkout of sacs-epfl/moe-inference")
    parser.add_argument("--campaign", type=Path, help="a campaign's folder, such as results/fig3, to stand beside it")
    given = parser.parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    try:
        verify(console, given.checkout, given.campaign)
    except ValueError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    return 0


def verify(console: Console, checkout: Path | None = None, campaign: Path | None = None) -> None:
    """Print everything. Raises ValueError where a checkout or a campaign is not one."""
    reference = load_reference()
    points = recomputed_points(reference, checkout)
    ours, claims = our_points(campaign, reference)
    origin = f"the raw data in {checkout}" if checkout else "the summary of the authors' runs in results/reference"
    console.print(f"Recomputed from {escape(origin)}.", highlight=False, soft_wrap=True)
    title = "Figures 3 and 4: speed-up of MoEShard over DeepSpeed"
    console.print(in_terminal(title, points_table(points, ours, campaign is not None)))
    if campaign is None:
        console.print("No campaign of yours: the verdicts below judge the authors' own data (--campaign FOLDER).")
    for verdict in [name for name in load_causes() if name in set(ours["verdict"])]:
        console.print(f"Likely cause of {verdict}: {load_causes()[verdict]}", highlight=False, soft_wrap=True)
    console.print(claims_shown(claims))
    if sentence := hardware_sentence(claims):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    console.print(finding(points), highlight=False, soft_wrap=True)
    for engine, model, low, high in learned_layers(checkout) if checkout else ():
        text = f"Section 4.2, learned router, {model}, {engine}: a MoE layer takes {low:.1f} to {high:.1f} ms."
        console.print(text, highlight=False, soft_wrap=True)


def recomputed_points(reference: Reference, checkout: Path | None) -> pd.DataFrame:
    """The figures' points with columns recomputed_layer and recomputed_ttft."""
    if checkout:
        return recompute(checkout, reference.figures, reference.runs, runs_behind)
    rows = reference.figures.to_dict("records")
    layer = [recomputed_layer(reference.runs, row) for row in rows]
    ttft = [recomputed_ttft(reference.runs, row) for row in rows]
    return reference.figures.assign(recomputed_layer=layer, recomputed_ttft=ttft)


def our_points(folder: Path | None, reference: Reference) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of `verdict_table` and of `claims_table`; without a campaign no points, and claims of the authors' data."""
    if folder is None:
        return pd.DataFrame(columns=["figure", "published_x", *OURS]), authors_claims(reference)
    campaign = load_campaign(folder)
    summary = summarise(campaign)
    ours = verdict_table(summary, published_points(campaign.plan, reference))
    return ours.reindex(columns=["figure", "published_x", *OURS]), claims_table(campaign, summary, reference)


def authors_claims(reference: Reference) -> pd.DataFrame:
    """The claims judged on the authors' own runs, where a ratio has to be the published one within OWN_TOLERANCE."""
    rows = []
    for claim in load_claims():
        if claim["judge"] in ("ratio_at", "highest"):
            claim["with"] |= {"tolerance": OWN_TOLERANCE}
        for metric in claim["metrics"]:
            recomputed, verdict = apply(claim, paper_points(claim, metric, reference))
            row = {"claim": name_of(claim, metric), "published": claim["published"], "recomputed": recomputed}
            row |= {"ours": NOTHING, "verdict": verdict, "series": NOTHING, "claimable": True}
            rows.append(row | {"cause": claim.get("causes", {}).get("recomputed", "")})
    return pd.DataFrame(rows).assign(device="").reindex(columns=COLUMNS)


def points_table(points: pd.DataFrame, ours: pd.DataFrame, measured: bool) -> pd.DataFrame:
    """One row a published point and series of ours."""
    rows = []
    for point in points.to_dict("records"):
        row = {"figure": point["figure"], "at": f"{short_axis_name(point['x_name'])} {point['x']}"}
        names = {"published": "value", "recomputed, layer": "recomputed_layer", "recomputed, TTFT": "recomputed_ttft"}
        row |= {title: times(point[name]) for title, name in names.items()}
        beside = ours.loc[(ours["figure"] == point["figure"]) & (ours["published_x"] == point["x"])].to_dict("records")
        for one in (beside or [OURS]) if measured else [OURS]:
            layer, ttft = (with_interval(one[m], one[f"{m}_low"], one[f"{m}_high"], times) for m in ("layer", "ttft"))
            mine = {"system": one["series"], "ours, layer": layer, "ours, TTFT": ttft}
            mine |= {"verdict": not_for_claims(one["verdict"], one["claimable"])}
            rows.append(row | (mine if measured else {}))
    return pd.DataFrame(rows)


def claims_shown(claims: pd.DataFrame) -> RichTable:
    """Published, recomputed, ours, verdict and its likely cause; of which system where there are several."""
    table = words_table(claims)
    left_out = ["figure", *(["system"] if len(set(claims["series"]) - {NOTHING}) < 2 else [])]
    return in_terminal(f"{table.title} ({MARK}: {UNSURE})", table.shown.drop(columns=left_out))


def finding(points: pd.DataFrame) -> str:
    """What the recomputation says of the paper's metric, in numbers."""
    off = {name: points[f"recomputed_{name}"] / points["value"] for name in ("layer", "ttft")}
    worst = {name: f"{100 * (ratio - 1).abs().max():.0f} %" for name, ratio in off.items()}
    best = points.loc[points["value"].idxmax()]
    return (
        '[bold]Finding:[/bold] the published "TTFT speed-ups" are ratios of MoE layer times. Recomputed as such, all '
        f"{len(points)} points are within {worst['layer']} of the published ones; as ratios of full forward passes, "
        f"which is what TTFT means, they are up to {worst['ttft']} away. The largest point: published "
        f"{times(best['value'])}, layer ratio {times(best['recomputed_layer'])}, TTFT ratio "
        f"{times(best['recomputed_ttft'])}."
    )


if __name__ == "__main__":
    sys.exit(main())
