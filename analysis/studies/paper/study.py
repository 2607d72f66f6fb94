"""The paper in a report: its points in figures and tables of the panels that stand beside them, and its claims."""

from collections.abc import Iterable, Iterator
from functools import cached_property

import pandas as pd

from analysis.figures.canvas import Picture
from analysis.figures.panels import SIMULATED_PANEL, draw_beside, draw_layers, draw_load, draw_speedup
from analysis.frames import select
from analysis.panels import Panels
from analysis.studies.paper.claims import claims_table
from analysis.studies.paper.figures import LAYERS, learned_loads, marks, published_column
from analysis.studies.paper.hardware import hardware_sentence
from analysis.studies.paper.reference import load_reference, published_points
from analysis.studies.paper.tables import tested_claims, verdicts_table, with_verdicts, words_table
from analysis.studies.paper.verdict import verdict_table
from analysis.study import Section, kind_of
from analysis.tables import Table

POINTS = (
    "Published points are ratios of layer times on 4×A100; recomputed: ratios of full forward passes in the authors' "
    "raw data."
)


class Paper(Panels):
    """Panels that say which figures of the paper they stand beside (`published`), and what the paper says in words."""

    def owns(self, panel: dict) -> bool:
        return bool(panel.get("published")) and super().owns(panel)

    @cached_property
    def published(self) -> pd.DataFrame:
        """See `published_points`."""
        return published_points(self.findings.campaign.plan, load_reference())

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """See `verdict_table`."""
        return verdict_table(self.findings.summary, self.published)

    @cached_property
    def claims(self) -> pd.DataFrame:
        """See `claims_table`."""
        return claims_table(self.findings.campaign, self.findings.summary)

    def figures(self, panel: dict) -> Iterator[Picture]:
        kind = kind_of(panel)
        if kind == "load":
            return draw_load(self.findings, panel, learned_loads)
        if kind == "layers":
            return draw_layers(self.findings, panel, LAYERS)
        return self._speedup(panel) if kind == "speedup" else super().figures(panel)

    def _speedup(self, panel: dict) -> Iterator[Picture]:
        published = select(self.published, experiment=panel["name"])
        rows = select(self.findings.summary, experiment=panel["name"])
        if panel["name"].endswith(SIMULATED_PANEL) and len(rows["x"].unique()) > 1:
            columns = [published_column(panel, published, load_reference())] if len(published) else []
            yield draw_beside(self.findings, panel, columns)
        else:
            yield from draw_speedup(self.findings, panel, marks(published, rows))

    def table(self, panel: dict) -> Table:
        table = super().table(panel)
        return with_verdicts(table, panel, self.verdicts) if kind_of(panel) == "speedup" else table

    def tables(self) -> list[Table]:
        return [words_table(self.claims), verdicts_table(self.verdicts)]

    def told(self) -> Iterable[str | Table]:
        table = tested_claims(words_table(self.claims))
        return [*([table] if len(table.shown) else []), *filter(None, [hardware_sentence(self.claims)])]

    def sections(self) -> list[Section]:
        parts = [table for table in self.tables() if len(table.shown)]
        said = [*filter(None, [hardware_sentence(self.claims)]), *([POINTS] if len(self.verdicts) else [])]
        return [Section("expected", "Expected and obtained", [*parts, *said])] if parts else []


STUDY = Paper
