"""How systems and numbers look everywhere: one name, colour and marker for each system; formats of numbers."""

import zlib

import numpy as np
import pandas as pd

# Okabe & Ito's palette, safe for colour-blind readers; its yellow is left out, too pale for a line on white.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    *["#000000", "#E69F00", "#56B4E9", "#009E73"],
    *["#0072B2", "#D55E00", "#CC79A7"],
)
KNOWN = {
    "deepspeed": ("DeepSpeed", BLACK, "s"),
    "deepspeed_dropless": ("DeepSpeed dropless", PURPLE, "s"),
    "moeshard": ("MoEShard", VERMILLION, "o"),
    "moeshard_no_megablocks": ("MoEShard loop", ORANGE, "h"),
    "ep": ("EP", BLUE, "^"),
    "ep_round_robin": ("EP round-robin", SKY, "v"),
    "dense": ("dense", GREEN, "D"),
}
OTHERS = [(GREEN, "P"), (PURPLE, "X"), (BLUE, "<"), (SKY, ">"), (ORANGE, "p")]
AXES = {"num_experts": "number of experts", "batch_size": "batch size per GPU", "seq_len": "sequence length"}


def system_name(system: str) -> str:
    return KNOWN[system][0] if system in KNOWN else system


def system_styles(systems: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by system; one not in KNOWN keeps its pair from figure to figure unless two want the same."""
    styles = {system: KNOWN[system][1:] for system in systems if system in KNOWN}
    for system in sorted(set(systems) - set(KNOWN)):
        first = zlib.crc32(system.encode()) % len(OTHERS)
        wanted = OTHERS[first:] + OTHERS[:first]
        used = {colour for colour, _ in styles.values()}
        styles[system] = next((look for look in wanted if look[0] not in used), wanted[0])
    return styles


def series_names(frame: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """Name by (system, engine, precision), with engine and precision only where they tell two series apart."""
    keys = sorted(set(frame[["system", "engine", "precision"]].itertuples(index=False, name=None)))
    return {key: ", ".join([system_name(key[0]), *telling(key, keys)]) for key in keys}


def telling(key: tuple[str, str, str], keys: list[tuple[str, str, str]]) -> list[str]:
    twins = [other for other in keys if other[0] == key[0]]
    return [key[part] for part in (1, 2) if len({other[part] for other in twins}) > 1]


def short_axis_name(x_name: str) -> str:
    return x_name.removeprefix("num_").removesuffix("_size").replace("_", " ")


def axis_name(x_name: str) -> str:
    return AXES.get(x_name, x_name.replace("_", " "))


def times(ratio: float) -> str:
    """A ratio as 0.27×, 2.35× or 12.3×."""
    return "–" if np.isnan(ratio) else f"{ratio:#.3g}×" if ratio >= 10 else f"{ratio:.2f}×"


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    if np.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def with_interval(value: float, low: float, high: float, form=number) -> str:
    """A value and its interval as 2.35× [2.30, 2.41]; the value alone when it has none."""
    if np.isnan([value, low, high]).any():
        return form(value)
    return f"{form(value)} [{form(low)}, {form(high)}]".replace("×,", ",").replace("×]", "]")
