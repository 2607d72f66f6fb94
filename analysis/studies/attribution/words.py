"""An attribution as a table and in words; `attribute` has the numbers."""

from collections.abc import Callable

import pandas as pd

from analysis.frames import select
from analysis.labels import number, short_axis_name, system_name, times, with_interval, x_text
from analysis.load import SIMULATED, Campaign
from analysis.studies.attribution.account import PARTS, RESIDUAL, TOTAL, panel_named, split
from analysis.studies.attribution.ladder import BALANCED, CAUSES, PLAIN, SHARDED, SHOWN
from analysis.tables import Table, slug

PART_NAMES = {
    "padding": "padding",
    "experts": "useful rows",
    "imbalance": "stragglers",
    "communication": "communication",
    "waiting": "sections with collectives",
    "weights": "moving weights",
    "host": "host",
    "kernels": "other kernels",
    "non_moe": "outside MoE",
    RESIDUAL: "unexplained",
}
VALUE, PERCENT = ["value", "ci_low", "ci_high"], ["percent", "percent_low", "percent_high"]
RESIDUAL_SHARE = "unexplained, %"
UNSEPARATED = (
    "This cluster does not tell when transfers began: communication, waiting and the computation in the sections that "
    "exchange data cannot be told apart."
)


def rung_name(name: str) -> str:
    """`EP round-robin, even load` for a rung under the balanced router."""
    return system_name(name.removesuffix(BALANCED)) + (", even load" if name.endswith(BALANCED) else "")


def shown_x(rows: pd.DataFrame) -> object:
    """The point that is shown step by step: that of SHOWN where it was measured, else the last one."""
    found = list(dict.fromkeys(rows["x"]))
    wanted = SHOWN.get(rows["x_name"].iloc[0])
    return wanted if wanted in found else found[-1]


def by_part(rows: pd.DataFrame) -> dict[str, dict]:
    """The rows of one level, step or whole by their part."""
    return {row["part"]: row for row in rows.to_dict("records")}


def present_parts(rows: pd.DataFrame) -> list[str]:
    """The parts that are not zero everywhere."""
    return [part for part in PARTS if any(value != 0 for value in select(rows, part=part)["value"])]


def attribution_table(rows: pd.DataFrame, panel: dict) -> Table:
    """Steps of one point, their sum, the difference end to end and what is unexplained; of other points the sum.

    rows: of `attribute`. Shown in ms saved, negative is lost; the csv has every number of every point.
    """
    if rows.empty:
        return Table(slug(panel["name"]), panel["title"], rows, pd.DataFrame())
    x, parts, shown = shown_x(rows), present_parts(rows), []
    for point in [x, *(other for other in dict.fromkeys(rows["x"]) if other != x)]:
        here = select(rows, x=point)
        lines = step_lines(here, parts) if point == x else []
        lines += whole_lines(here, parts, everything=point == x)
        shown += [{short_axis_name(panel["x_name"]): x_text(panel["x_name"], point)} | line for line in lines]
    title = f"{panel['title']}: ms of TTFT saved by each change, by where they were spent (negative: lost)"
    return Table(slug(panel["name"]), title, rows, pd.DataFrame(shown).fillna(""))


def step_lines(here: pd.DataFrame, parts: list[str]) -> list[dict[str, str]]:
    """A line a step of one point: what changes, the system that it leads to, and ms saved by part."""
    steps = [by_part(step) for _, step in select(here, kind="step").groupby("step")]
    return [
        {"change": of[TOTAL]["change"], "system": rung_name(of[TOTAL]["below"])} | cells(of, parts, VALUE, saved)
        for of in steps
    ]


def whole_lines(here: pd.DataFrame, parts: list[str], *, everything: bool) -> list[dict[str, str]]:
    """The sum of all steps; with `everything` also the shares, what was measured end to end, and the residual."""
    of = by_part(select(here, kind="whole"))
    names = f"{rung_name(of[TOTAL]['above'])} to {rung_name(of[TOTAL]['below'])}"
    values, shares = cells(of, parts, VALUE, saved), cells(of, parts, PERCENT, percent)
    left = {RESIDUAL_SHARE: shares[PART_NAMES[RESIDUAL]]}
    if not everything:
        return [{"change": names} | values | left]
    added = saved(sum(of[part]["value"] for part in parts))
    none = {TOTAL: "", PART_NAMES[RESIDUAL]: ""}
    return [
        {"change": "sum of the parts"} | values | none | {TOTAL: added},
        {"change": "share of the difference"} | shares | none,
        {"change": "measured difference", TOTAL: values[TOTAL]},
        {"change": "residual", PART_NAMES[RESIDUAL]: values[PART_NAMES[RESIDUAL]]} | left,
    ]


def cells(of: dict[str, dict], parts: list[str], keys: list[str], form: Callable[[float], str]) -> dict[str, str]:
    """One line's parts; the total and the residual with their intervals."""
    line = {PART_NAMES[part]: form(of[part][keys[0]]) for part in parts}
    ends = {TOTAL: TOTAL, RESIDUAL: PART_NAMES[RESIDUAL]}
    return line | {name: with_interval(*(of[part][key] for key in keys), form=form) for part, name in ends.items()}


def saved(milliseconds: float) -> str:
    """To a tenth of a millisecond, without a negative zero."""
    return f"{round(milliseconds, 1) + 0.0:.1f}"


def percent(share: float) -> str:
    """Of a share in percent, without a negative zero."""
    return f"{round(share, 1) + 0.0:.1f} %"


def in_words(campaign: Campaign, rows: pd.DataFrame) -> list[str]:
    """What an attribution says: the whole ladder by its causes, and sharding against plain expert parallelism.

    rows: of `attribute`; the sentences are about the point of `shown_x`.
    """
    if rows.empty:
        return []
    here = select(rows, x=shown_x(rows))
    found = [f"{whole_sentence(here, where(campaign, here))} {left_sentence(campaign, here)}"]
    if {PLAIN, SHARDED} <= set(here["above"]):
        found.append(pair_sentence(split(campaign, here["experiment"].iloc[0], shown_x(rows), PLAIN, SHARDED)))
    return found + ([UNSEPARATED] if "waiting" in present_parts(here) else [])


def where(campaign: Campaign, here: pd.DataFrame) -> str:
    """`E = 128, batch 25`, of the workload behind a point."""
    points = panel_named(campaign, here["experiment"].iloc[0])["points"]
    cells = [cell for point in points if point["x"] == here["x"].iloc[0] for cell in point["cells"]]
    of = next(campaign.runs[cell]["point"] for cell in cells if cell in campaign.frames)
    return f"E = {of['num_experts']}, batch {of['batch_size']}"


def whole_sentence(here: pd.DataFrame, at: str) -> str:
    """The ends of the ladder at one point: their ratio, and the difference by cause."""
    of = by_part(select(here, kind="whole"))
    first, last = (rung_name(of[TOTAL][end]) for end in ("above", "below"))
    levels = [row["value"] for row in select(here, kind="level", part=TOTAL).to_dict("records")]
    ratio, difference = levels[0] / levels[-1], of[TOTAL]["value"]
    faster, spent = ("faster", "saved") if difference > 0 else ("slower", "lost")
    steps = cause_shares(here)
    shares = ", ".join(f"{cause} {share:.0f} %" for cause, share in steps.items())
    return (
        f"At {at}, {last}'s forward pass is {times(max(ratio, 1 / ratio))} {faster} than {first}'s; of the "
        f"{number(abs(difference))} ms {spent}: {shares}."
    )


def left_sentence(campaign: Campaign, here: pd.DataFrame) -> str:
    """What the account of the whole ladder leaves unexplained."""
    if {campaign.runs[cell]["source"] for cell in campaign.frames} == {SIMULATED}:
        return "The split by place is of the simulated pass itself and leaves nothing unexplained."
    of = by_part(select(here, kind="whole"))
    left = with_interval(*(of[RESIDUAL][key] for key in PERCENT), form=percent)
    return f"The instrumented pass, on which the split by place rests, leaves {left} of it unexplained."


def cause_shares(here: pd.DataFrame) -> dict[str, float]:
    """Percent of the whole difference by cause, steps of one cause together, in the order of CAUSES."""
    steps = select(here, kind="step", part=TOTAL).to_dict("records")
    found = dict.fromkeys([cause for cause in CAUSES if any(step["cause"] == cause for step in steps)], 0.0)
    for step in steps:
        found[step["cause"]] = found.get(step["cause"], 0.0) + step["percent"]
    return found


def pair_sentence(pair: pd.DataFrame) -> str:
    """Sharding against plain expert parallelism, its gains and costs in the order of their size."""
    of = pair.to_dict("index")
    sign = 1 if of[TOTAL]["value"] > 0 else -1
    value, low, high = (sign * of[TOTAL][key] for key in VALUE)
    total = with_interval(value, *((low, high) if sign > 0 else (high, low)), saved)
    sizes = sorted(((abs(of[part]["value"]), part) for part in [*PARTS, RESIDUAL]), reverse=True)
    told = ", ".join(f"{PART_NAMES[part]} {sign * of[part]['value']:+.1f}" for size, part in sizes if size >= 0.05)
    verb = "saves" if sign > 0 else "loses"
    return f"Against plain expert parallelism ({system_name(PLAIN)}) {system_name(SHARDED)} {verb} {total} ms: {told}."
