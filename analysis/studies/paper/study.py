"""The paper in a report: its points in figures and tables of the panels that stand beside them, and its claims."""

from collections.abc import Iterable, Iterator
from functools import cached_property

import pandas as pd

from analysis.figures.beside import SPEEDUP, TIME_MS, Column
from analysis.figures.canvas import Picture
from analysis.figures.expert_load import Recorded
from analysis.figures.panels import SIMULATED_PANEL, draw_beside, draw_layers, draw_load, draw_speedup
from analysis.figures.speedup import Marks
from analysis.frames import select
from analysis.load import runs_of
from analysis.panels import Panels
from analysis.studies.paper.claims import claims_table
from analysis.studies.paper.hardware import hardware_sentence
from analysis.studies.paper.reference import (
    Reference,
    layer_ms,
    load_reference,
    published_points,
    recorded_loads,
    same_series,
)
from analysis.studies.paper.tables import tested_claims, verdicts_table, with_verdicts, words_table
from analysis.studies.paper.verdict import verdict_table
from analysis.study import Section, kind_of
from analysis.tables import Table

# Column of `published_points`, the metric that it stands beside, and what it is.
SHOWN = [
    ("published", "speedup_layer_paper", "published, 4×A100"),
    ("recomputed_ttft", "speedup_ttft", "authors' raw data, 4×A100"),
]
POINTS = (
    "Published points are ratios of layer times on 4×A100; recomputed: ratios of full forward passes in the authors' "
    "raw data."
)
AUTHORS = {"deepspeed": ("deepspeed", "deepspeed"), "moeshard_authors": ("moeshard", "megablocks")}
LAYERS = "Published (4×A100, E = 128, batch 250, learned router): DeepSpeed 177–180 ms, MoEShard 41.5–43.5 ms."
LOADS = "Dashed: loads of the paper's learned router (batch 250 × 120 tokens, one GPU), first and last MoE layer."


def marks(published: pd.DataFrame, summary: pd.DataFrame) -> list[Marks]:
    """Published points for the series that a panel has; both are rows of the panel."""
    found = []
    for column, metric, source in SHOWN:
        several = False
        for system, engine in published[["system", "engine"]].drop_duplicates().itertuples(index=False, name=None):
            beside = same_series(summary, system, engine)["system"].unique()
            if not len(beside):
                continue
            name = source if engine != "loop" else "the same, loop" if several else f"{source}, loop"
            rows = select(published, system=system, engine=engine).set_index("x")
            found.append(Marks(metric, beside[0], name, rows[column].to_dict(), dashed=engine == "loop"))
            several = True
    return found


def learned_loads(num_experts: int) -> Recorded | None:
    """Loads of the paper's learned router; None for a number of experts of which there is no record."""
    tokens_ILE, layers = recorded_loads(load_reference().traces, num_experts)
    loads = {layer: tokens_ILE[:, at].astype(float) for at, layer in enumerate(layers)}
    return Recorded("paper's model, real text", LOADS, loads) if loads else None


def published_column(panel: dict, published: pd.DataFrame, reference: Reference) -> Column:
    """The paper's points and the authors' layers: like ours, at the paper's x, without intervals."""
    points = [{"x": point["published_x"]} for point in panel["points"] if point["published_x"] is not None]
    ratios = published.loc[published["engine"] != "loop"].drop_duplicates("published_x")
    rows = [("moeshard_authors", SPEEDUP, row["published_x"], row["published"]) for row in ratios.to_dict("records")]
    for system, (theirs, engine) in AUTHORS.items():
        times = {x: layer_ms(reference.runs, theirs, engine, panel["x_name"], x) for x in (p["x"] for p in points)}
        rows += [(system, TIME_MS, x, value) for x, value in times.items()]
    rows = pd.DataFrame(rows, columns=["system", "metric", "x", "value"]).assign(engine="", precision="")
    return Column("published, 4×A100", points, rows.assign(ci_low=rows["value"], ci_high=rows["value"]))


class Paper(Panels):
    """Panels that say which figures of the paper they stand beside (`published`), and what the paper says in words."""

    def owns(self, panel: dict) -> bool:
        return self.has_the_papers_model and bool(panel.get("published")) and super().owns(panel)

    @cached_property
    def has_the_papers_model(self) -> bool:
        """Whether all cells are of an encoder, of which alone the paper speaks."""
        return all(run.get("regime", "encode") == "encode" for run in runs_of(self.findings.campaign))

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
        return [words_table(self.claims), verdicts_table(self.verdicts)] if self.has_the_papers_model else []

    def notes(self) -> Iterable[str | Table]:
        if not self.has_the_papers_model:
            return []
        table = tested_claims(words_table(self.claims))
        return [*([table] if len(table.shown) else []), *filter(None, [hardware_sentence(self.claims)])]

    def sections(self) -> list[Section]:
        if not self.has_the_papers_model:
            return []
        parts = [table for table in self.tables() if len(table.shown)]
        said = [*filter(None, [hardware_sentence(self.claims)]), *([POINTS] if len(self.verdicts) else [])]
        return [Section("expected", "Expected and obtained", [*parts, *said])] if parts else []


STUDY = Paper
