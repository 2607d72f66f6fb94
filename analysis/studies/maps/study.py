"""Panels of kind `map`: who wins where on two axes, where the border runs, and where practice lies."""

from collections.abc import Iterator

import pandas as pd

from analysis.figures.canvas import Picture
from analysis.figures.panels import absent, joined, statistics_of
from analysis.findings import describe
from analysis.labels import in_regime, short_axis_name, x_text
from analysis.load import regime_of
from analysis.panel_tables import with_doubt
from analysis.studies.maps.borders import borders
from analysis.studies.maps.figure import plot_map
from analysis.studies.maps.practice import known_loads, loads_sentence
from analysis.studies.maps.winners import METRICS, map_frames, winners
from analysis.studies.maps.words import border_sentence, map_rows
from analysis.study import Study
from analysis.tables import Table, slug

MAP = "Second system's time ÷ the fastest one's, 95 % interval over launches; medians of the slowest rank."


class Maps(Study):
    """One map for each metric: MoE layers, and the full forward pass."""

    kinds = ("map",)

    def figures(self, panel: dict) -> Iterator[Picture]:
        """A map of each metric that has values."""
        findings, campaign = self.findings, self.findings.campaign
        loads, axes = known_loads(campaign, panel), {"x_name": panel["x_name"], "y_name": panel["y_name"]}
        for metric, frame in map_frames(campaign, panel).items():
            if frame.empty:
                continue
            floor = findings.floor_of(panel).get(metric)
            note = joined(
                border_sentence(borders(frame, floor=floor), **axes),
                loads_sentence(loads),
                statistics_of(findings, panel, f"{MAP} {findings.doubt(panel)}"),
                describe(campaign, panel),
                absent(campaign, panel),
            )
            path = campaign.folder / slug(panel["name"] + ("" if metric == "layer_moe_ms" else "_ttft"))
            timed = in_regime(METRICS[metric], regime_of(campaign, panel))
            title = f"{panel['title']}: the fastest system, {timed}"
            yield plot_map(frame, path, title=title, note=note, points=loads, floor=floor, **axes)

    def table(self, panel: dict) -> Table:
        """A row a y and metric, a column an x, the border last. The numbers: winner and margin by point."""
        y_heading, border = short_axis_name(panel["y_name"]), f"border, {short_axis_name(panel['x_name'])}"
        raw, shown = [], []
        for metric, frame in map_frames(self.findings.campaign, panel).items():
            floor = self.findings.floor_of(panel).get(metric)
            raw.append(winners(frame, floor).assign(metric=metric))
            rows = map_rows(frame, floor).rename(columns={"border": border, "y": y_heading})
            rows[y_heading] = [x_text(panel["y_name"], y) for y in rows[y_heading]]
            rows.columns = [x_text(panel["x_name"], name) for name in rows.columns]
            rows.insert(0, "time of", in_regime(METRICS[metric], regime_of(self.findings.campaign, panel)))
            shown.append(rows)
        title = f"{panel['title']}: the fastest system and the second's time ÷ its own"
        title += with_doubt(self.findings, panel)
        return Table(slug(panel["name"]), title, pd.concat(raw, ignore_index=True), pd.concat(shown, ignore_index=True))


STUDY = Maps
