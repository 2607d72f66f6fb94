"""What was found in a campaign, and the sentences that stand beside its numbers wherever they are shown."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.labels import in_regime
from analysis.load import Campaign, device_of, load_campaign, regime_of, runs_of, simulated_on
from analysis.model_error import model_sentence, tie_bands
from analysis.stats import Floor
from analysis.summary import noise_floor, summarise
from analysis.validity import judge

METRICS = {"ttft_ms": "TTFT", "layer_moe_ms": "one MoE layer"}


@dataclass(frozen=True)
class Findings:
    """All that figures, tables and reports are made of, computed from the raw rows of one campaign."""

    campaign: Campaign
    summary: pd.DataFrame
    floor: dict[str, Floor]
    checks: pd.DataFrame

    def floor_of(self, panel: dict) -> dict[str, Floor]:
        """What a panel's ratios must exceed, by metric: the A/A noise floor, or where simulated the model's error."""
        device = simulated_on(self.campaign, panel)
        return tie_bands(device) if device else self.floor

    def doubt(self, panel: dict) -> str:
        """The sentence on `floor_of`."""
        device = simulated_on(self.campaign, panel)
        said = model_sentence(device) if device else floor_sentence(self.floor)
        return in_regime(said, regime_of(self.campaign, panel))

    def doubts(self) -> list[str]:
        """`doubt` of all panels, each once."""
        return list(dict.fromkeys(map(self.doubt, self.campaign.plan["panels"])))


def find(folder: Path | str) -> Findings:
    """Load a campaign's folder and compute everything; a partial campaign will do.

    Raises ValueError when the plan cannot be read, or where numbers that must not be mixed stand in one statistic.
    """
    campaign = load_campaign(folder)
    summary = summarise(campaign)
    return Findings(campaign, summary, noise_floor(campaign, summary), judge(campaign, summary))


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


def describe(campaign: Campaign, panel: dict | None = None) -> str:
    """A sentence for each source of a panel, or of the campaign: where, G, precision, engines, scale, repetitions."""
    by_origin: dict[tuple, list[dict]] = {}
    for run in runs_of(campaign, panel):
        by_origin.setdefault((run["source"], device_of(run)), []).append(run)
    return " ".join(map(description, by_origin.values())) or "No cell has been measured."


def description(runs: list[dict]) -> str:
    """The sentence on runs of one source and device."""
    first, launches = runs[0], len({run["launch"] for run in runs})
    ranks, tier = listed(run["point"]["world_size"] for run in runs), listed(run["tier"] for run in runs)
    repeated = [f"tier {tier}" + ("" if tier == "full" else " (not for claims)")]
    repeated += [f"{launches} launch{'es' if launches > 1 else ''}"]
    facts = [
        *(simulated_where if device_of(first) else measured_where)(first, ranks),
        f"precision {listed(run['precision'] for run in runs)}",
        f"engine {listed(run['engine'] for run in runs)}",
        *dict.fromkeys(map(model_of, runs)),
        *dict.fromkeys(text for run in runs for text in unequal(run)),
        *([] if device_of(first) else repeated),
    ]
    return " ".join([", ".join(facts) + ".", *matched(runs)])


def model_of(run: dict) -> str:
    """The scale of a Switch encoder, or which decoder it is and what is timed."""
    config = run["config"]
    family = config.get("model", {}).get("family", "switch")
    if family == "switch":
        return f"scale {config['scale']['name']}"
    return f"{family} of {config['model']['num_blocks']} blocks, d_model {config['model']['d_model']}, {run['regime']}"


def unequal(run: dict) -> list[str]:
    """What part of the batch each rank has, where ranks have unequal ones."""
    shares = run["config"].get("batch_shares")
    return [f"ranks with {':'.join(f'{share:g}' for share in shares)} of the batch"] if shares else []


def matched(runs: list[dict]) -> list[str]:
    """A sentence for each network that was worked out for the machine: what it makes of the core."""
    networks = [run["config"].get("network", {}) for run in runs if run["source"] == "emulated"]
    found = [one["source"] for one in networks if one.get("name") == "matched"]
    return [f"The network keeps this ratio: {source}." for source in dict.fromkeys(found)]


def simulated_where(run: dict, ranks: str) -> list[str]:
    """Source, and so many of which described device."""
    return [f"Source: simulated on {ranks} × {run['device']['title']} ({run['device']['name']})"]


def listed(values: Iterable[object]) -> str:
    """Distinct values in order, with slashes between them."""
    return "/".join(
        sorted({str(value) for value in values}, key=lambda text: (len(text) if text.isdigit() else 0, text))
    )


def measured_where(run: dict, ranks: str) -> list[str]:
    """Source, the cluster with its device, the network model where one was used, and the number of ranks."""
    cluster, network = run["config"].get("cluster", {}), run["config"].get("network", {})
    place = [f"cluster {cluster['kind']} on {cluster['device']}"] if cluster else []
    place += [f"network {network['name']}"] if network and run["source"] == "emulated" else []
    return [f"Source: {run['source']}", *place, f"G = {ranks} ranks"]


def floor_sentence(floor: dict[str, Floor]) -> str:
    """The A/A noise floor: what the same system, measured twice in a launch, differs from itself."""
    if not floor:
        return "No system was measured twice: the noise floor is unknown."
    parts = [f"{METRICS.get(metric, metric)} ±{100 * one.value:.1f} %" for metric, one in floor.items()]
    pairs = max(one.n_pairs for one in floor.values())
    which = f"Noise floor of {pairs} A/A pair{'s' if pairs > 1 else ''}"
    return f"{which}: {', '.join(parts)}; grey or ~: not told apart from it."
