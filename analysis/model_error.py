"""How far simulated times are from measured ones, as devices/validated.json tells of each described device."""

import json
from pathlib import Path
from typing import NamedTuple

from analysis.labels import percent
from analysis.stats import Floor

VALIDATED = Path(__file__).parents[1] / "devices" / "validated.json"
TIMES = {"layer_moe_ms": "of a layer", "ttft_ms": "of TTFT"}


class ModelError(NamedTuple):
    """Shares (0.02 is 2 %) over so many measured runs: of a time in the median and at worst.

    ratio: of a ratio of two systems at one point. Two systems within it are a tie.
    """

    median: float
    worst: float
    ratio: float
    runs: int


def model_error(device: str) -> dict[str, ModelError]:
    """By metric (TIMES); {} where the device was not validated."""
    known = json.loads(VALIDATED.read_text()).get(device, {}) if VALIDATED.exists() else {}
    return {
        metric: ModelError(*(known[metric][name] for name in ModelError._fields)) for metric in TIMES if metric in known
    }


def tie_bands(device: str) -> dict[str, Floor]:
    """What the A/A noise floor is to measured ratios, by metric; {} where the device was not validated."""
    return {metric: Floor(error.ratio, error.runs) for metric, error in model_error(device).items()}


def model_sentence(device: str) -> str:
    """What stands beside simulated numbers instead of intervals."""
    errors = model_error(device)
    if not errors:
        return f"The model of {device} has not been validated: differences are shown without a verdict."
    times = [f"{TIMES[name]} ±{percent(one.median)} (at worst {percent(one.worst)})" for name, one in errors.items()]
    ties = [f"{percent(one.ratio)} ({TIMES[name]})" for name, one in errors.items()]
    runs = max(one.runs for one in errors.values())
    return f"Model's error, validated on {runs} runs: {', '.join(times)}; grey or ~: within a tie, {', '.join(ties)}."
