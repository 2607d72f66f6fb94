"""From a campaign's plan to its figures: which figure a kind of panel gets, and what is said below it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from analysis.fidelity import EMULATED, compare, launch_medians, paired
from analysis.figures.attribution import draw_attribution
from analysis.figures.beside import Column, plot_beside, published_column
from analysis.figures.canvas import Picture
from analysis.figures.expert_load import expert_tokens, plot_load, recorded_loads
from analysis.figures.fidelity import plot_fidelity
from analysis.figures.layers import plot_layers
from analysis.figures.league import plot_league
from analysis.figures.maps import plot_map
from analysis.figures.scaling import plot_scaling
from analysis.figures.sections import plot_sections, section_times
from analysis.figures.speedup import plot_speedup
from analysis.findings import Findings, describe
from analysis.frames import select
from analysis.labels import SERIES, series_names, short_axis_name, system_name, x_text
from analysis.load import TRUSTED, Campaign, coverage, simulated_on
from analysis.maps import METRICS, border_sentence, borders, map_frames, place_text
from analysis.practice import known_loads, loads_sentence
from analysis.reference import load_reference
from analysis.scaling import scaling_frame
from analysis.stats import Floor
from analysis.summary import FLOOR_OF
from analysis.tables import slug

SIMULATED_PANEL = "_simulated"  # ends the name of a panel that stands beside the one without it
STATISTICS = (
    "Bars: 95 % intervals (cut: no cap). Layer speed-ups: ratios of means, as in the paper. "
    "All else: medians of the slowest rank."
)
SLOWEST = "Medians of the slowest rank, 95 % intervals (cut: no cap); ranks meet before each layer."
LEAGUE = "Medians of the slowest rank, 95 % intervals, cut at half; ranks meet before each layer."
INSIDE = "Medians; black: the whole layer, 95 % interval (cut: no cap). Collectives include waiting for other ranks."
PAPER_LAYERS = "Published (4×A100, E = 128, batch 250, learned router): DeepSpeed 177–180 ms, MoEShard 41.5–43.5 ms."
TOKENS = "Bars: mean over iterations, all ranks together; blue lines: range over iterations; dotted: the mean load."
MAP = "Second system's time ÷ the fastest one's, 95 % interval over launches; medians of the slowest rank."
EXACT = "Simulated: the slowest rank of a forward pass, which repeats exactly."
RANKS = "Medians of the slowest rank; memory of the rank that holds most, weights included."
RECORDED = "Dashed: loads of the paper's learned router (batch 250 × 120 tokens, one GPU), first and last MoE layer."


def draw_panel(findings: Findings, panel: dict) -> list[Picture]:
    """Write the figures of a panel into the campaign's folder; none where there is nothing to show yet."""
    kind = panel.get("kind", "speedup")
    if kind not in KINDS:
        raise ValueError(f"panel {panel['name']} has kind ({kind}); allowed are {', '.join(KINDS)}")
    return list(KINDS[kind](findings, panel))


def draw_speedup(findings: Findings, panel: dict) -> Iterator[Picture]:
    """One figure of a panel that has more than one measured point."""
    rows = select(findings.summary, experiment=panel["name"])
    if len(rows["x"].unique()) < 2:
        return
    if panel["name"].endswith(SIMULATED_PANEL):
        yield draw_beside(findings, panel)
        return
    sentences = [
        describe(findings.campaign, panel),
        told(findings, panel, f"{STATISTICS} {findings.doubt(panel)}"),
        absent(findings.campaign, panel),
    ]
    yield plot_speedup(
        rows,
        panel,
        findings.published if panel["published"] else findings.published.iloc[:0],
        findings.campaign.folder / slug(panel["name"]),
        baseline=findings.campaign.plan.get("baseline"),
        floors=floors_of(findings, panel),
        note=" ".join(filter(None, sentences)),
    )


def floors_of(findings: Findings, panel: dict) -> dict[str, Floor]:
    """`Findings.floor_of` by speed-up."""
    floor = findings.floor_of(panel)
    return {speedup: floor[metric] for speedup, metric in FLOOR_OF.items() if metric in floor}


def draw_beside(findings: Findings, panel: dict) -> Picture:
    """A simulated panel between the paper's and the panel of the same name that ran here, if that has numbers."""
    partner = panel["name"].removesuffix(SIMULATED_PANEL)
    published = select(findings.published, experiment=panel["name"])
    columns = [published_column(panel, published, load_reference())] if len(published) else []
    sentences = []
    for one in (panel, *(other for other in findings.campaign.plan["panels"] if other["name"] == partner)):
        rows = select(findings.summary, experiment=one["name"])
        if len(rows):
            device = simulated_on(findings.campaign, one)
            title = f"simulated, {device}" if device else f"{rows['source'].iloc[0]} here"
            columns.append(Column(title, one["points"], rows, floors_of(findings, one)))
            sentences += [describe(findings.campaign, one), findings.doubt(one), absent(findings.campaign, one)]
    baseline = findings.campaign.plan.get("baseline") or "baseline"
    title = f"{panel['title']}: {' | '.join(column.title for column in columns)}"
    path = findings.campaign.folder / slug(panel["name"])
    note = " ".join(filter(None, sentences))
    return plot_beside(columns, panel["x_name"], path, title=title, note=note, baseline=baseline)


def draw_load(findings: Findings, panel: dict) -> Iterator[Picture]:
    """A figure a point; all systems of a point see the same routing, so any measured cell will do."""
    for point, at, path in places(findings.campaign, panel):
        cell = next((cell for cell in point["cells"] if cell in findings.campaign.frames), None)
        if cell is None:
            continue
        num_experts = findings.campaign.runs[cell]["point"]["num_experts"]
        tokens, recorded = expert_tokens(findings.campaign.routing(cell), num_experts), recorded_loads(num_experts)
        sentences = [describe(findings.campaign, panel), TOKENS, RECORDED if recorded else ""]
        title = f"{panel['title']}: tokens per expert{at}"
        yield plot_load(tokens, path, title=title, note=" ".join(filter(None, sentences)), recorded=recorded)


def draw_league(findings: Findings, panel: dict) -> Iterator[Picture]:
    """A picture a point: the league table; none where nothing was measured."""
    for point, at, path in places(findings.campaign, panel):
        here = select(findings.summary, experiment=panel["name"], x=point["x"])
        if here.empty:
            continue
        sentences = [describe(findings.campaign, panel), told(findings, panel, LEAGUE)]
        sentences += [ties(here, findings, panel), absent(findings.campaign, panel)]
        yield plot_league(here, path, title=f"{panel['title']}{at}", note=" ".join(filter(None, sentences)))


def draw_layers(findings: Findings, panel: dict) -> Iterator[Picture]:
    """A picture a point: the latency of each MoE layer; none where no layer was measured."""
    for point, at, path in places(findings.campaign, panel):
        here = select(findings.summary, experiment=panel["name"], x=point["x"], metric="layer_moe_by_layer_ms")
        if here.empty:
            continue
        sentences = [describe(findings.campaign, panel), told(findings, panel, SLOWEST), PAPER_LAYERS]
        sentences.append(absent(findings.campaign, panel))
        title, baseline = f"{panel['title']}: latency of each MoE layer{at}", findings.campaign.plan.get("baseline")
        yield plot_layers(here, path, title=title, note=" ".join(filter(None, sentences)), baseline=baseline)


def draw_sections(findings: Findings, panel: dict) -> Iterator[Picture]:
    """A picture a point: the time of each section and rank; none where no section was measured."""
    for point, at, path in places(findings.campaign, panel):
        section_ms = section_times(findings.campaign, point["cells"])
        if section_ms.empty:
            continue
        sentences = [describe(findings.campaign, panel), told(findings, panel, INSIDE)]
        sentences.append(absent(findings.campaign, panel))
        title = f"{panel['title']}: time in each section of an MoE layer{at}"
        yield plot_sections(section_ms, path, title=title, note=" ".join(filter(None, sentences)))


def draw_map(findings: Findings, panel: dict) -> Iterator[Picture]:
    """One figure for each metric: MoE layers, and the full forward pass."""
    loads, axes = known_loads(findings.campaign, panel), {"x_name": panel["x_name"], "y_name": panel["y_name"]}
    for metric, frame in map_frames(findings.campaign, panel).items():
        if frame.empty:
            continue
        floor = findings.floor_of(panel).get(metric)
        sentences = [
            border_sentence(borders(frame, floor=floor), **axes),
            loads_sentence(loads),
            told(findings, panel, f"{MAP} {findings.doubt(panel)}"),
            describe(findings.campaign, panel),
            absent(findings.campaign, panel),
        ]
        name = panel["name"] + ("" if metric == "layer_moe_ms" else "_ttft")
        look = {"title": f"{panel['title']}: the fastest system, {METRICS[metric]}", "points": loads, "floor": floor}
        note = " ".join(filter(None, sentences))
        yield plot_map(frame, findings.campaign.folder / slug(name), note=note, **look, **axes)


def draw_scaling(findings: Findings, panel: dict) -> Iterator[Picture]:
    """A figure a y: layer time and memory against the number of ranks."""
    frame = scaling_frame(findings.campaign, panel)
    for y in frame["y"].unique():
        here, at, end = frame.loc[frame["y"] == y], "", ""
        if panel.get("y_name"):
            at, end = f", {short_axis_name(panel['y_name'])} {x_text(panel['y_name'], y)}", f"_{y}"
        sentences = [RANKS, describe(findings.campaign, panel), absent(findings.campaign, panel)]
        path, note = findings.campaign.folder / slug(f"{panel['name']}{end}"), " ".join(filter(None, sentences))
        yield plot_scaling(here, path, title=f"{panel['title']}{at}", note=note)


def draw_fidelity(findings: Findings, panel: dict) -> Iterator[Picture]:
    """A panel of real times beside its emulated partner, if the campaign has it."""
    campaign, pair = findings.campaign, (panel["name"], panel["name"] + EMULATED)
    times = launch_medians(campaign)
    if set(pair) <= set(times["panel"]):
        errors = compare(*paired(times.loc[times["panel"].isin(pair)]))
        yield plot_fidelity(errors, campaign.folder / slug(panel["name"]), describe(campaign))


KINDS: dict[str, Callable[[Findings, dict], Iterator[Picture]]] = {
    "speedup": draw_speedup,
    "load": draw_load,
    "league": draw_league,
    "layers": draw_layers,
    "sections": draw_sections,
    "map": draw_map,
    "scaling": draw_scaling,
    "attribution": draw_attribution,
    "fidelity": draw_fidelity,
    "counterfactual": lambda findings, panel: iter(()),  # measured for another panel
}


def places(campaign: Campaign, panel: dict) -> Iterator[tuple[dict, str, Path]]:
    """Every point of a panel with the words that say where it is and the path of its figure, without a suffix."""
    for point in panel["points"]:
        at = f", {short_axis_name(panel['x_name'])} = {x_text(panel['x_name'], point['x'])}"
        name = panel["name"] if len(panel["points"]) == 1 else f"{panel['name']}_{point['x']}"
        yield point, at, campaign.folder / slug(name)


def told(findings: Findings, panel: dict, statistics: str) -> str:
    """What the numbers of a figure are: `statistics` of measurements, or what stands for them where simulated."""
    return f"{EXACT} {findings.doubt(panel)}" if simulated_on(findings.campaign, panel) else statistics


def ties(here: pd.DataFrame, findings: Findings, panel: dict) -> str:
    """Of one simulated point, which systems the model's error does not tell from the fastest."""
    band = findings.floor_of(panel).get("ttft_ms")
    if not simulated_on(findings.campaign, panel) or band is None:
        return ""
    passes = select(here, metric="ttft_ms").sort_values("value")
    names, fastest = series_names(here), passes["value"].min()
    near = passes.loc[passes["value"] <= fastest * (1 + band.value), SERIES].itertuples(index=False, name=None)
    tied = [names[key] for key in near]
    return f"{'Tied for the fastest' if len(tied) > 1 else 'Fastest'} forward pass: {', '.join(tied)}."


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
