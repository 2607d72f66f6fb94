"""How systems and numbers look everywhere: one name, colour and marker for each system; formats of numbers."""

import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from analysis.stats import Floor, outside

# Okabe & Ito's palette, safe for colour-blind readers; its yellow is for areas, too pale for a line on white.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE, YELLOW = (
    *["#000000", "#E69F00", "#56B4E9", "#009E73"],
    *["#0072B2", "#D55E00", "#CC79A7"],
    "#F0E442",
)
GREY = "#777777"
COLOURS = {"black": BLACK, "orange": ORANGE, "sky": SKY, "green": GREEN, "blue": BLUE, "vermillion": VERMILLION}
COLOURS |= {"purple": PURPLE}
CONF = Path(__file__).parents[1] / "conf/system"
REMEMBERED: dict[str, dict] = {}  # by system, the block `about` of a run that was loaded
MARKERS = set("oshdDpPXv^<>*")
OTHERS = [(GREEN, "P"), (PURPLE, "X"), (BLUE, "<"), (SKY, ">"), (ORANGE, "p")]
# In the order in which a layer runs them.
SECTIONS = {
    "route": PURPLE,
    "metadata": SKY,
    "plan": BLACK,
    "weights": VERMILLION,
    "dispatch": BLUE,
    "experts": ORANGE,
    "combine": GREEN,
}
SERIES = ["system", "engine", "precision"]  # what makes a series of its own
AXES = {
    "num_experts": "number of experts",
    "batch_size": "batch size per GPU",
    "seq_len": "sequence length",
    "alpha": "extra weight of a hot expert (alpha_r)",
    "skewed_share": "share of experts that are hot (k_r)",
    "imbalance": "max ÷ mean load of the ranks",
    "world_size": "number of ranks",
}
PERCENT = {"skewed_share"}
UNSURE = "not for claims"
WITHIN_FLOOR = "~"  # stands before a ratio that the A/A noise floor could explain
# What a word in a table says of its row: good, warn, bad, or dim. Colour never says it alone.
TONES = {
    "bad": {"not reproduced", "does not hold", "fail", "failed", "oom", "timeout", "invalid", "corrupt"},
    "warn": {"direction only", "warn", "output not verified", "within the model's error"},
    "dim": {UNSURE, "not measured", "not testable here", "not validated", "not applicable", "missing", "unsupported"},
    "good": {"reproduced", "holds", "pass", "ok"},
}


def remember(runs: Iterable[dict]) -> None:
    """What the systems of stored runs say of themselves, for the names and looks of all tables and figures."""
    for run in runs:
        if about := run.get("config", {}).get("system", {}).get("about"):
            REMEMBERED[run["system"]] = about


@cache
def declared() -> dict[str, dict]:
    """By name, what the systems of this repository say of themselves: older runs have not stored it."""
    documents = (yaml.safe_load(path.read_text()) for path in CONF.glob("*.yaml"))
    return {document["name"]: document.get("about", {}) for document in documents}


def about(system: str) -> dict:
    """The block `about` of a system's configuration; {} where it has none."""
    return REMEMBERED.get(system) or declared().get(system, {})


def system_name(system: str) -> str:
    """As tables and figures call a system; one that has no label by its own name."""
    return about(system).get("label", system)


def system_styles(systems: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by system; where none is told the pair stays from figure to figure unless two want the same."""
    told = {system: (COLOURS.get(about(system).get("colour", "")), about(system).get("marker")) for system in systems}
    styles = {system: (colour, marker) for system, (colour, marker) in told.items() if colour and marker in MARKERS}
    for system in sorted(set(systems) - styles.keys()):
        first = zlib.crc32(system.encode()) % len(OTHERS)
        wanted = OTHERS[first:] + OTHERS[:first]
        used = {colour for colour, _ in styles.values()}
        styles[system] = next((look for look in wanted if look[0] not in used), wanted[0])
    return styles


def series_names(frame: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """Name by (system, engine, precision), with engine and precision only where they tell two series apart."""
    keys = sorted(set(frame[SERIES].itertuples(index=False, name=None)))
    return {key: ", ".join([system_name(key[0]), *telling(key, keys)]) for key in keys}


def telling(key: tuple[str, str, str], keys: list[tuple[str, str, str]]) -> list[str]:
    """Engine and precision of a series, each only where another series of the system has a different one."""
    twins = [other for other in keys if other[0] == key[0]]
    return [key[part] for part in (1, 2) if len({other[part] for other in twins}) > 1]


def short_axis_name(x_name: str) -> str:
    """For headings of tables and rows of text."""
    return "ranks" if x_name == "world_size" else x_name.removeprefix("num_").removesuffix("_size").replace("_", " ")


def axis_name(x_name: str) -> str:
    """For axes of figures."""
    return AXES.get(x_name, x_name.replace("_", " "))


def x_text(x_name: str, x: object) -> str:
    """A point's place on its axis: 128, 0.6, or 10 % for a share."""
    if isinstance(x, int | float) and x_name in PERCENT:
        return f"{100 * x:g} %"
    return f"{x:g}" if isinstance(x, float) else str(x)


def place_text(row: Mapping) -> str:
    """A point's place: `experts 64`, or `experts 64, world size 8` where the panel has two axes."""
    first = f"{short_axis_name(row['x_name'])} {x_text(row['x_name'], row['x'])}"
    if not isinstance(row.get("y_name"), str):
        return first
    return f"{first}, {short_axis_name(row['y_name'])} {x_text(row['y_name'], row['y'])}"


def tone(text: object) -> str:
    """`bad`, `warn`, `dim` or `good`: the worst verdict or state in a table's cell ("1 ok, 1 oom"); else ""."""
    if str(text).startswith(WITHIN_FLOOR):
        return "dim"
    words = {part.strip().lstrip("0123456789 ") for part in str(text).split(",")}
    return next((name for name, known in TONES.items() if words & known), "")


def within_floor(low: float, high: float, floor: Floor | None) -> bool:
    """Whether a ratio's interval reaches into the A/A noise floor; never where no floor was measured."""
    return floor is not None and not outside(low, high, floor)


def percent(share: float) -> str:
    """A share from 0 to 1 as 6 % or 2.4 %."""
    return f"{100 * share:.2g} %"


def times(ratio: float) -> str:
    """A ratio as 0.27×, 2.35×, 12.3× or 128×."""
    return "–" if np.isnan(ratio) else f"{number(ratio)}×" if ratio >= 10 else f"{ratio:.2f}×"


def in_regime(text: str, regime: str) -> str:
    """The field's word for a timed pass: TTFT is a prompt's and, as the paper has it, an encoder's whole pass."""
    text = text.replace("forward pass", {"prefill": "prefill", "decode": "decoding step"}.get(regime, "forward pass"))
    return text.replace("TTFT", "TPOT") if regime == "decode" else text


def number(value: float) -> str:
    """Three significant digits, no exponent; 0 as 0."""
    if np.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:#.3g}"


def with_interval(value: float, low: float, high: float, form=number) -> str:
    """A value and its interval as 2.35× [2.30, 2.41]; the value alone when it has none, or none but itself."""
    if np.isnan([value, low, high]).any() or low == high:
        return form(value)
    return f"{form(value)} [{form(low)}, {form(high)}]".replace("×,", ",").replace("×]", "]")
