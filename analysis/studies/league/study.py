"""Panels of kind `league`: every system at one point, with what it moves, holds and drops."""

from collections.abc import Iterator

import pandas as pd

from analysis.figures.canvas import Picture
from analysis.figures.panels import note, places, told
from analysis.frames import select
from analysis.labels import SERIES, number, series_names
from analysis.load import simulated_on
from analysis.panel_tables import SYSTEMS, series_table
from analysis.studies.league.figure import plot_league
from analysis.study import Study
from analysis.tables import Table

LEAGUE = "Medians of the slowest rank, 95 % intervals, cut at half; ranks meet before each layer."
COLUMNS = SYSTEMS | {
    "bytes_sent": ("sent a pass, MB", lambda value: number(value / 1e6)),
    "weight_bytes": ("expert weights of a rank, MB", lambda value: number(value / 1e6)),
    "section_ms/plan": ("plan, ms", number),
    "section_ms/weights": ("moving weights, ms", number),
    "dropped": ("dropped", number),
    "foreseen": ("loads foreseen, share", number),
}


class League(Study):
    """A picture a point, and all points in one table."""

    kinds = ("league",)

    def figures(self, panel: dict) -> Iterator[Picture]:
        for point, at, path in places(self.findings.campaign, panel):
            here = select(self.findings.summary, experiment=panel["name"], x=point["x"])
            if len(here):
                said = note(self.findings, panel, told(self.findings, panel, LEAGUE), self._ties(here, panel))
                yield plot_league(here, path, title=f"{panel['title']}{at}", note=said)

    def _ties(self, here: pd.DataFrame, panel: dict) -> str:
        """Of one simulated point, which systems the model's error does not tell from the fastest."""
        band = self.findings.floor_of(panel).get("ttft_ms")
        if not simulated_on(self.findings.campaign, panel) or band is None:
            return ""
        passes = select(here, metric="ttft_ms").sort_values("value")
        names, fastest = series_names(here), passes["value"].min()
        near = passes.loc[passes["value"] <= fastest * (1 + band.value), SERIES].itertuples(index=False, name=None)
        tied = [names[key] for key in near]
        return f"{'Tied for the fastest' if len(tied) > 1 else 'Fastest'} forward pass: {', '.join(tied)}."

    def table(self, panel: dict) -> Table:
        return series_table(self.findings, panel, COLUMNS)


STUDY = League
