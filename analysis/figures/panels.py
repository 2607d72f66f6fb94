"""The figures of panels that any campaign may have, and what is said below a figure."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from analysis.figures.beside import Column, plot_beside
from analysis.figures.canvas import Picture
from analysis.figures.expert_load import Recorded, expert_tokens, plot_load
from analysis.figures.layers import plot_layers
from analysis.figures.sections import plot_sections, section_times
from analysis.figures.speedup import Marks, plot_speedup
from analysis.findings import Findings, describe
from analysis.frames import select
from analysis.labels import place_text, short_axis_name, system_name, x_text
from analysis.load import TRUSTED, Campaign, coverage, regime_of, simulated_on
from analysis.stats import Floor
from analysis.summary import FLOOR_OF
from analysis.tables import slug

SIMULATED_PANEL = "_simulated"  # ends the name of a panel that stands beside the one without it
STATISTICS = (
    "Bars: 95 % intervals (cut: no cap). Layer speed-ups: ratios of means, as in the paper. "
    "All else: medians of the slowest rank."
)
SLOWEST = "Medians of the slowest rank, 95 % intervals (cut: no cap); ranks meet before each layer."
INSIDE = "Medians; black: the whole layer, 95 % interval (cut: no cap). Collectives include waiting for other ranks."
TOKENS = "Bars: mean over iterations, all ranks together; blue lines: range over iterations; dotted: the mean load."
EXACT = "Simulated: the slowest rank of a forward pass, which repeats exactly."


def draw_speedup(findings: Findings, panel: dict, marks: Sequence[Marks] = ()) -> Iterator[Picture]:
    """One figure of a panel that has more than one measured point; marks: numbers from elsewhere beside ours."""
    rows = select(findings.summary, experiment=panel["name"])
    if len(rows["x"].unique()) < 2:
        return
    if panel["name"].endswith(SIMULATED_PANEL):
        yield draw_beside(findings, panel)
        return
    yield plot_speedup(
        rows,
        panel,
        marks,
        findings.campaign.folder / slug(panel["name"]),
        baseline=findings.campaign.plan.get("baseline"),
        floors=floors_of(findings, panel),
        note=note(findings, panel, statistics_of(findings, panel, f"{STATISTICS} {findings.doubt(panel)}")),
        regime=regime_of(findings.campaign, panel),
    )


def floors_of(findings: Findings, panel: dict) -> dict[str, Floor]:
    """`Findings.floor_of` by speed-up."""
    floor = findings.floor_of(panel)
    return {speedup: floor[metric] for speedup, metric in FLOOR_OF.items() if metric in floor}


def draw_beside(findings: Findings, panel: dict, first: Sequence[Column] = ()) -> Picture:
    """A simulated panel before the panel of the same name that ran here, if that has numbers, and after `first`."""
    partner, columns, sentences = panel["name"].removesuffix(SIMULATED_PANEL), list(first), []
    for one in (panel, *(other for other in findings.campaign.plan["panels"] if other["name"] == partner)):
        rows = select(findings.summary, experiment=one["name"])
        if len(rows):
            device = simulated_on(findings.campaign, one)
            title = f"simulated, {device}" if device else f"{rows['source'].iloc[0]} here"
            columns.append(Column(title, one["points"], rows, floors_of(findings, one)))
            sentences.append(note(findings, one, findings.doubt(one)))
    baseline = findings.campaign.plan.get("baseline") or "baseline"
    title = f"{panel['title']}: {' | '.join(column.title for column in columns)}"
    path = findings.campaign.folder / slug(panel["name"])
    return plot_beside(columns, panel["x_name"], path, title=title, note=joined(*sentences), baseline=baseline)


def draw_load(
    findings: Findings, panel: dict, recorded: Callable[[int], Recorded | None] = lambda num_experts: None
) -> Iterator[Picture]:
    """A figure a point; all systems of a point see the same routing, so any measured cell will do.

    recorded: gives loads of as many experts that were recorded elsewhere.
    """
    for point, at, path in places(findings.campaign, panel):
        cell = next((cell for cell in point["cells"] if cell in findings.campaign.frames), None)
        if cell is None:
            continue
        num_experts = findings.campaign.runs[cell]["point"]["num_experts"]
        tokens, others = expert_tokens(findings.campaign.routing(cell), num_experts), recorded(num_experts)
        said = joined(describe(findings.campaign, panel), TOKENS, others.sentence if others else "")
        yield plot_load(tokens, path, title=f"{panel['title']}: tokens per expert{at}", note=said, recorded=others)


def draw_layers(findings: Findings, panel: dict, beside: str = "") -> Iterator[Picture]:
    """A picture a point: the latency of each MoE layer; none where no layer was measured. beside: one more sentence."""
    for point, at, path in places(findings.campaign, panel):
        here = select(findings.summary, experiment=panel["name"], x=point["x"], metric="layer_moe_by_layer_ms")
        if here.empty:
            continue
        said = note(findings, panel, statistics_of(findings, panel, SLOWEST), beside)
        title, baseline = f"{panel['title']}: latency of each MoE layer{at}", findings.campaign.plan.get("baseline")
        yield plot_layers(here, path, title=title, note=said, baseline=baseline)


def draw_sections(findings: Findings, panel: dict) -> Iterator[Picture]:
    """A picture a point: the time of each section and rank; none where no section was measured."""
    for point, at, path in places(findings.campaign, panel):
        section_ms = section_times(findings.campaign, point["cells"])
        if len(section_ms):
            title = f"{panel['title']}: time in each section of an MoE layer{at}"
            said = note(findings, panel, statistics_of(findings, panel, INSIDE))
            yield plot_sections(section_ms, path, title=title, note=said)


def note(findings: Findings, panel: dict, *said: str) -> str:
    """What stands below a figure: where its numbers are from, what is said of them, and what is missing."""
    return joined(describe(findings.campaign, panel), *said, absent(findings.campaign, panel))


def joined(*sentences: str) -> str:
    """Those that there are, one after the other."""
    return " ".join(filter(None, sentences))


def places(campaign: Campaign, panel: dict) -> Iterator[tuple[dict, str, Path]]:
    """Every point of a panel with the words that say where it is and the path of its figure, without a suffix."""
    for point in panel["points"]:
        at = f", {short_axis_name(panel['x_name'])} = {x_text(panel['x_name'], point['x'])}"
        name = panel["name"] if len(panel["points"]) == 1 else f"{panel['name']}_{point['x']}"
        yield point, at, campaign.folder / slug(name)


def statistics_of(findings: Findings, panel: dict, statistics: str) -> str:
    """What the numbers of a figure are: `statistics` of measurements, or what stands for them where simulated."""
    return f"{EXACT} {findings.doubt(panel)}" if simulated_on(findings.campaign, panel) else statistics


def absent(campaign: Campaign, panel: dict) -> str:
    """What a figure cannot show, in a sentence."""
    cells = select(coverage(campaign), experiment=panel["name"])
    cells = cells.assign(system=cells["system"].fillna("cell " + cells["cell"]))
    failed = cells.loc[cells["state"] != "ok"].to_dict("records")
    unchecked = cells.loc[(cells["state"] == "ok") & ~cells["correctness"].isin(TRUSTED)].to_dict("records")
    where = [f"{system_name(row['system'])} at {at(row)} ({row['state']})" for row in failed]
    where += [f"speed-up of {system_name(row['system'])} at {at(row)} (output not verified)" for row in unchecked]
    return f"Without data: {', '.join(dict.fromkeys(where))}." if where else ""


def at(row: dict) -> str:
    """A row's place in words; of a panel with one axis the bare value."""
    return place_text(row) if row["y_name"] else str(row["x"])
