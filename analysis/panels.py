"""Who draws a panel of the plan: a study, or what is here for panels that any campaign may have."""

from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from analysis.figures.canvas import Picture
from analysis.figures.panels import draw_layers, draw_load, draw_sections, draw_speedup
from analysis.figures.sections import present
from analysis.findings import Findings
from analysis.frames import select
from analysis.labels import number, times
from analysis.panel_tables import SYSTEMS, Columns, load_table, series_table
from analysis.study import Study, found, kind_of
from analysis.tables import Table

DRAWN: dict[str, Callable[[Findings, dict], Iterator[Picture]]] = {
    "speedup": draw_speedup,
    "load": draw_load,
    "layers": draw_layers,
    "sections": draw_sections,
    "counterfactual": lambda findings, panel: iter(()),  # measured for another panel
}


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


COLUMNS: dict[str, Callable[[pd.DataFrame], Columns]] = {"layers": layer_columns, "sections": section_columns}


class Panels(Study):
    """The kinds of panels that any campaign may have."""

    kinds = tuple(DRAWN)

    def figures(self, panel: dict) -> Iterator[Picture]:
        return DRAWN[kind_of(panel)](self.findings, panel)

    def table(self, panel: dict) -> Table:
        if kind_of(panel) == "load":
            return load_table(self.findings, panel)
        columns = COLUMNS.get(kind_of(panel), lambda rows: SYSTEMS)
        return series_table(self.findings, panel, columns(select(self.findings.summary, experiment=panel["name"])))


def studies(findings: Findings) -> list[Study]:
    """Who draws the panels of a campaign: studies first, for they may have asked for a kind that is everybody's."""
    return [*found(findings), Panels(findings)]


def owner(panel: dict, among: Sequence[Study]) -> Study:
    """The first that draws a panel; ValueError naming the kinds there are."""
    for study in among:
        if study.owns(panel):
            return study
    kinds = ", ".join(sorted(kind for study in among for kind in study.kinds))
    raise ValueError(f"panel {panel['name']} has kind ({kind_of(panel)}); allowed are {kinds}")


def draw_panel(findings: Findings, panel: dict) -> list[Picture]:
    """Write the figures of a panel into the campaign's folder; none where there is nothing to show yet."""
    return list(owner(panel, studies(findings)).figures(panel))


def panel_table(findings: Findings, panel: dict) -> Table:
    """What a panel's figure shows, as a table."""
    return owner(panel, studies(findings)).table(panel)
