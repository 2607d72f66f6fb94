"""What was found in a campaign, and the sentences that stand beside its numbers wherever they are shown."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.claims import claims_table
from analysis.load import Campaign, load_campaign
from analysis.reference import load_reference, published_points
from analysis.stats import Floor
from analysis.summary import noise_floor, summarise
from analysis.validity import judge
from analysis.verdict import verdict_table

METRICS = {"ttft_ms": "TTFT", "layer_moe_ms": "one MoE layer"}


@dataclass(frozen=True)
class Findings:
    """All that figures, tables and reports are made of, computed from the raw rows of one campaign."""

    campaign: Campaign
    summary: pd.DataFrame
    floor: dict[str, Floor]
    published: pd.DataFrame
    verdicts: pd.DataFrame
    claims: pd.DataFrame
    checks: pd.DataFrame


def find(folder: Path | str) -> Findings:
    """Load a campaign's folder and compute everything; a partial campaign will do.

    Raises ValueError when the plan cannot be read, or where numbers that must not be mixed stand in one statistic.
    """
    campaign = load_campaign(folder)
    summary = summarise(campaign)
    published = published_points(campaign.plan, load_reference())
    return Findings(
        campaign,
        summary,
        noise_floor(campaign, summary),
        published,
        verdict_table(summary, published),
        claims_table(campaign, summary),
        judge(campaign, summary),
    )


def campaign_folder(name: Path | str) -> Path:
    """The current folder where it is a campaign's, else `name` as seen from it or from the nearest folder above it.

    Raises ValueError when there is none.
    """
    here = Path.cwd()
    candidates = [here, *(folder / name for folder in (here, *here.parents))]
    for folder in candidates:
        if (folder / "plan.json").exists():
            return folder
    raise ValueError(f"{name} is not a campaign's folder: it has no plan.json.")


def describe(campaign: Campaign) -> str:
    """Source, cluster, G, precision, engines, scale, tier, launches."""
    ok = [campaign.runs[cell] for cell in campaign.frames]
    if not ok:
        return "No cell has been measured."
    plan = campaign.plan
    launches = len({run["launch"] for run in ok})
    facts = [
        f"Source: {listed(run['source'] for run in ok)}",
        *where(ok[0]),
        f"G = {listed(run['point']['world_size'] for run in ok)} ranks",
        f"precision {listed(run['precision'] for run in ok)}",
        f"engine {listed(run['engine'] for run in ok)}",
        f"scale {plan['scale']}",
        f"tier {plan['tier']}" + ("" if plan["tier"] == "full" else " (not for claims)"),
        f"{launches} launch{'es' if launches > 1 else ''}",
    ]
    return " ".join([", ".join(facts) + ".", *matched(ok)])


def matched(runs: list[dict]) -> list[str]:
    """A sentence for each network that was worked out for the machine: what it makes of the core."""
    networks = [run["config"].get("network", {}) for run in runs if run["source"] == "emulated"]
    found = [one["source"] for one in networks if one.get("name") == "matched"]
    return [f"The network keeps this ratio: {source}." for source in dict.fromkeys(found)]


def listed(values: Iterable[object]) -> str:
    """Distinct values in order, with slashes between them."""
    return "/".join(sorted({str(value) for value in values}))


def where(run: dict) -> list[str]:
    """The cluster with its device, and the network model where one was used."""
    cluster, network = run["config"].get("cluster", {}), run["config"].get("network", {})
    place = [f"cluster {cluster['kind']} on {cluster['device']}"] if cluster else []
    return place + ([f"network {network['name']}"] if network and run["source"] == "emulated" else [])


def floor_sentence(floor: dict[str, Floor]) -> str:
    """The A/A noise floor: what the same system, measured twice in a launch, differs from itself."""
    if not floor:
        return "No system was measured twice: the noise floor is unknown."
    parts = [f"{METRICS.get(metric, metric)} ±{100 * one.value:.1f} %" for metric, one in floor.items()]
    pairs = max(one.n_pairs for one in floor.values())
    which = f"Noise floor of {pairs} A/A pair{'s' if pairs > 1 else ''}"
    return f"{which}: {', '.join(parts)}; grey or ~: not told apart from it."
