"""Panels of kind `fidelity`: real times beside their emulated partners."""

from collections.abc import Iterator

from analysis.figures.canvas import Picture
from analysis.findings import describe
from analysis.panel_tables import SYSTEMS, series_table
from analysis.series import launch_medians
from analysis.studies.fidelity.compare import EMULATED, compare, paired
from analysis.studies.fidelity.figure import plot_fidelity
from analysis.study import Study
from analysis.tables import Table, slug


class Fidelity(Study):
    """One figure of a panel whose emulated partner the campaign has."""

    kinds = ("fidelity",)

    def figures(self, panel: dict) -> Iterator[Picture]:
        campaign, names = self.findings.campaign, (panel["name"], panel["name"] + EMULATED)
        times = launch_medians(campaign, [one for one in campaign.plan["panels"] if one["name"] in names])
        if set(names) <= set(times["panel"]):
            errors = compare(*paired(times))
            yield plot_fidelity(errors, campaign.folder / slug(panel["name"]), describe(campaign))

    def table(self, panel: dict) -> Table:
        return series_table(self.findings, panel, SYSTEMS)


STUDY = Fidelity
