"""What a panel's figure shows, as a table of text with its intervals, and the numbers behind it."""

from collections.abc import Callable

import pandas as pd

from analysis.figures.expert_load import expert_tokens, load_statistics
from analysis.findings import Findings
from analysis.frames import select
from analysis.labels import (
    WITHIN_FLOOR,
    in_regime,
    number,
    series_names,
    short_axis_name,
    times,
    with_interval,
    within_floor,
    x_text,
)
from analysis.load import regime_of, simulated_on
from analysis.stats import Floor
from analysis.summary import FLOOR_OF
from analysis.tables import Table, slug

SYSTEMS = {
    "ttft_ms": ("TTFT, ms", number),
    "speedup_ttft": ("speed-up, TTFT", times),
    "layer_moe_ms": ("MoE layer, ms", number),
    "speedup_layer_paper": ("speed-up, layer", times),
    "padding": ("padding", number),
    "imbalance": ("max ÷ mean rows", number),
}
# Not timed: summary.csv has their spread over iterations.
COUNTED = {"padding", "imbalance", "over_least", "bytes_sent", "weight_bytes", "dropped", "predicted"}
LOADS = {
    "busiest": "busiest expert, tokens",
    "busiest_to_mean": "busiest ÷ mean",
    "empty": "empty experts",
    "gini": "Gini",
}
Columns = dict[str, tuple[str, Callable[[float], str]]]


def titled(findings: Findings, panel: dict, rows: pd.DataFrame, shown: pd.DataFrame) -> Table:
    """A panel's table under its title, with the sources of its rows."""
    sources = ", ".join(sorted(set(rows["source"])))
    title = f"{panel['title']} ({sources})" if sources else panel["title"]
    return Table(slug(panel["name"]), title + with_doubt(findings, panel), rows, shown)


def with_doubt(findings: Findings, panel: dict) -> str:
    """What a simulated panel's title ends with: once for the table, because its numbers have no intervals."""
    return f". {findings.doubt(panel)}" if simulated_on(findings.campaign, panel) else ""


def series_table(findings: Findings, panel: dict, columns: Columns) -> Table:
    """A row a point and series; a column a metric (of a section or layer: `section_ms/experts`), with its interval."""
    rows = select(findings.summary, experiment=panel["name"])
    part = rows["section"].fillna(rows["layer"].astype("string"))
    keyed = rows.assign(key=rows["metric"].where(part.isna(), rows["metric"] + "/" + part.fillna("")))
    columns = {key: look for key, look in columns.items() if key in set(keyed["key"])}
    regime = regime_of(findings.campaign, panel)
    columns = {key: (in_regime(title, regime), form) for key, (title, form) in columns.items()}
    heading, names, shown = short_axis_name(panel["x_name"]), series_names(rows), []
    floor = findings.floor_of(panel)
    for point in panel["points"]:
        for (system, engine, precision), name in names.items():
            mine = select(keyed, system=system, engine=engine, precision=precision, x=point["x"]).set_index("key")
            if len(mine):
                place = {heading: x_text(panel["x_name"], point["x"]), "system": name}
                shown.append(place | {title: cell(mine, key, form, floor) for key, (title, form) in columns.items()})
    titles = [heading, "system", *(title for title, _ in columns.values())]
    return titled(findings, panel, rows, pd.DataFrame(shown, columns=titles))


def cell(rows: pd.DataFrame, key: str, form: Callable[[float], str], floor: dict[str, Floor]) -> str:
    """A number with its interval; a ratio that the floor could explain is marked."""
    if key not in rows.index:
        return "–"
    value, low, high = rows.loc[key, ["value", "ci_low", "ci_high"]]
    if key in COUNTED:
        return form(value)
    inside = within_floor(low, high, floor.get(FLOOR_OF.get(key, "")))
    return (WITHIN_FLOOR if inside else "") + with_interval(value, low, high, form)


def load_table(findings: Findings, panel: dict) -> Table:
    """Busiest expert, empty experts and Gini coefficient by point and MoE layer, means over iterations."""
    shown = []
    for point in panel["points"]:
        cell = next((cell for cell in point["cells"] if cell in findings.campaign.frames), None)
        if cell is None:
            continue
        run = findings.campaign.runs[cell]
        for layer, tokens_IE in expert_tokens(findings.campaign.routing(cell), run["point"]["num_experts"]).items():
            of = {LOADS[name]: number(float(values_I.mean())) for name, values_I in load_statistics(tokens_IE).items()}
            place = {short_axis_name(panel["x_name"]): x_text(panel["x_name"], point["x"]), "MoE layer": str(layer)}
            shown.append(place | of)
    return titled(findings, panel, select(findings.summary, experiment=panel["name"]), pd.DataFrame(shown))
