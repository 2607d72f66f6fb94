"""What a panel's figure shows, as a table of text with its intervals, and the numbers behind it."""

from collections.abc import Callable

import pandas as pd

from analysis.attribution.ladder import attribute
from analysis.attribution.words import attribution_table
from analysis.figures.expert_load import expert_tokens, load_statistics
from analysis.figures.sections import present
from analysis.findings import Findings
from analysis.frames import select
from analysis.labels import (
    WITHIN_FLOOR,
    number,
    series_names,
    short_axis_name,
    times,
    with_interval,
    within_floor,
    x_text,
)
from analysis.load import simulated_on
from analysis.maps import METRICS, map_frames, map_rows, winners
from analysis.scaling import scaling_table
from analysis.stats import Floor
from analysis.summary import FLOOR_OF
from analysis.tables import Table, not_for_claims, slug

SYSTEMS = {
    "ttft_ms": ("TTFT, ms", number),
    "speedup_ttft": ("speed-up, TTFT", times),
    "layer_moe_ms": ("MoE layer, ms", number),
    "speedup_layer_paper": ("speed-up, layer", times),
    "padding": ("padding", number),
    "imbalance": ("max ÷ mean rows", number),
}
LEAGUE = SYSTEMS | {
    "bytes_sent": ("sent a pass, MB", lambda value: number(value / 1e6)),
    "weight_bytes": ("expert weights of a rank, MB", lambda value: number(value / 1e6)),
    "section_ms/plan": ("plan, ms", number),
    "section_ms/weights": ("moving weights, ms", number),
    "dropped": ("dropped", number),
    "foreseen": ("loads foreseen, share", number),
}
COUNTED = {
    "padding",
    "imbalance",
    "bytes_sent",
    "weight_bytes",
    "dropped",
    "foreseen",
}  # not timed: summary.csv has their spread over iterations
Columns = dict[str, tuple[str, Callable[[float], str]]]


def panel_table(findings: Findings, panel: dict) -> Table:
    """What a panel's figure shows, as a table: systems by point, their layers or sections, or the loads of experts."""
    rows = select(findings.summary, experiment=panel["name"])
    kind = panel.get("kind", "speedup")
    if kind == "map":
        return map_table(findings, panel)
    if kind == "scaling":
        return scaling_table(findings.campaign, panel)
    if kind == "attribution":
        return attribution_table(attribute(findings.campaign, panel["name"]), panel)
    shown = load_rows(findings, panel) if kind == "load" else series_table(findings, panel, rows, COLUMNS[kind](rows))
    if kind == "speedup":
        shown = with_verdicts(shown, panel, findings.verdicts)
    sources = ", ".join(sorted(set(rows["source"])))
    title = f"{panel['title']} ({sources})" if sources else panel["title"]
    return Table(slug(panel["name"]), title + with_doubt(findings, panel), rows, shown)


def with_doubt(findings: Findings, panel: dict) -> str:
    """What a simulated panel's title ends with: once for the table, because its numbers have no intervals."""
    return f". {findings.doubt(panel)}" if simulated_on(findings.campaign, panel) else ""


def map_table(findings: Findings, panel: dict) -> Table:
    """A map as text: a row a y and metric, a column an x, the border last. The numbers: winner and margin by point."""
    y_heading, border = short_axis_name(panel["y_name"]), f"border, {short_axis_name(panel['x_name'])}"
    raw, shown = [], []
    for metric, frame in map_frames(findings.campaign, panel).items():
        floor = findings.floor_of(panel).get(metric)
        raw.append(winners(frame, floor).assign(metric=metric))
        rows = map_rows(frame, floor).rename(columns={"border": border, "y": y_heading})
        rows[y_heading] = [x_text(panel["y_name"], y) for y in rows[y_heading]]
        rows.columns = [x_text(panel["x_name"], name) for name in rows.columns]
        rows.insert(0, "time of", METRICS[metric])
        shown.append(rows)
    title = f"{panel['title']}: the fastest system and the second's time ÷ its own"
    title += with_doubt(findings, panel)
    return Table(slug(panel["name"]), title, pd.concat(raw, ignore_index=True), pd.concat(shown, ignore_index=True))


def layer_columns(rows: pd.DataFrame) -> Columns:
    """Of a panel of layers: the time of each MoE layer, and the speed-up of all."""
    layers = sorted(rows["layer"].dropna().unique())
    milliseconds = {f"layer_moe_by_layer_ms/{layer}": (f"block {layer}, ms", number) for layer in layers}
    return milliseconds | {"speedup_layer": ("speed-up, layer", times)}


def section_columns(rows: pd.DataFrame) -> Columns:
    """Of a panel of sections: the time of each, and how near the experts are to the machine's ceiling."""
    milliseconds = {f"section_ms/{name}": (f"{name}, ms", number) for name in present(rows.dropna(subset="section"))}
    skew = {"entry_skew_ms": ("entry skew, ms", number)}
    return milliseconds | skew | {"percent_of_bound/experts": ("experts, % of ceiling", number)}


COLUMNS: dict[str, Callable[[pd.DataFrame], Columns]] = {
    "speedup": lambda rows: SYSTEMS,
    "counterfactual": lambda rows: SYSTEMS,
    "fidelity": lambda rows: SYSTEMS,
    "league": lambda rows: LEAGUE,
    "layers": layer_columns,
    "sections": section_columns,
}


def series_table(findings: Findings, panel: dict, rows: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """A row a point and series; a column a metric (of a section or layer: `section_ms/experts`), with its interval."""
    part = rows["section"].fillna(rows["layer"].astype("string"))
    rows = rows.assign(key=rows["metric"].where(part.isna(), rows["metric"] + "/" + part.fillna("")))
    columns = {key: look for key, look in columns.items() if key in set(rows["key"])}
    heading, names, found = short_axis_name(panel["x_name"]), series_names(rows), []
    floor = findings.floor_of(panel)
    for point in panel["points"]:
        for (system, engine, precision), name in names.items():
            mine = select(rows, system=system, engine=engine, precision=precision, x=point["x"]).set_index("key")
            if len(mine):
                place = {heading: x_text(panel["x_name"], point["x"]), "system": name}
                found.append(place | {title: cell(mine, key, form, floor) for key, (title, form) in columns.items()})
    return pd.DataFrame(found, columns=[heading, "system", *(title for title, _ in columns.values())])


def cell(rows: pd.DataFrame, key: str, form: Callable[[float], str], floor: dict[str, Floor]) -> str:
    """A number with its interval; a ratio that the floor could explain is marked."""
    if key not in rows.index:
        return "–"
    value, low, high = rows.loc[key, ["value", "ci_low", "ci_high"]]
    if key in COUNTED:
        return form(value)
    inside = within_floor(low, high, floor.get(FLOOR_OF.get(key, "")))
    return (WITHIN_FLOOR if inside else "") + with_interval(value, low, high, form)


def with_verdicts(shown: pd.DataFrame, panel: dict, verdicts: pd.DataFrame) -> pd.DataFrame:
    """The published value and its verdict beside the series that it stands for."""
    if verdicts.empty or (here := select(verdicts, experiment=panel["name"])).empty:
        return shown
    by_place = {(x_text(panel["x_name"], row["x"]), row["series"]): row for row in here.to_dict("records")}
    heading = short_axis_name(panel["x_name"])
    rows = [by_place.get(place) for place in zip(shown[heading], shown["system"], strict=True)]
    return shown.assign(
        paper=[times(row["published"]) if row else "" for row in rows],
        verdict=[not_for_claims(row["verdict"], row["claimable"]) if row else "" for row in rows],
    )


def load_rows(findings: Findings, panel: dict) -> pd.DataFrame:
    """Busiest expert, empty experts and Gini coefficient by point and MoE layer, means over iterations."""
    found = []
    for point in panel["points"]:
        cell = next((cell for cell in point["cells"] if cell in findings.campaign.frames), None)
        if cell is None:
            continue
        run = findings.campaign.runs[cell]
        for layer, tokens_IE in expert_tokens(findings.campaign.routing(cell), run["point"]["num_experts"]).items():
            of = {name: number(float(values_I.mean())) for name, values_I in load_statistics(tokens_IE).items()}
            place = {short_axis_name(panel["x_name"]): x_text(panel["x_name"], point["x"]), "MoE layer": str(layer)}
            titles = {
                "busiest": "busiest expert, tokens",
                "busiest_to_mean": "busiest ÷ mean",
                "empty": "empty experts",
            }
            found.append(place | {titles.get(name, "Gini"): text for name, text in of.items()})
    return pd.DataFrame(found)
