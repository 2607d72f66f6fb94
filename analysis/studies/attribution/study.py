"""Panels of kind `attribution`: why the last system of the ladder is faster than the first."""

from collections.abc import Iterable, Iterator

import pandas as pd

from analysis.figures.canvas import Picture
from analysis.figures.panels import joined
from analysis.findings import describe
from analysis.frames import select
from analysis.labels import short_axis_name, x_text
from analysis.load import Campaign
from analysis.studies.attribution.ladder import absent_rungs, attribute
from analysis.studies.attribution.shares import plot_shares
from analysis.studies.attribution.waterfall import plot_waterfall
from analysis.studies.attribution.words import attribution_table, in_words, rung_name, shown_x
from analysis.study import Study
from analysis.tables import Table, slug

SHARES = "Means of launches; hatched, below zero: works against it. Unexplained: 95 % interval over launches."


class Attribution(Study):
    """The waterfall of one point, and where there are several the shares at all of them; none without a ladder."""

    kinds = ("attribution",)

    def rows(self, panel: dict) -> pd.DataFrame:
        """See `attribute`."""
        return attribute(self.findings.campaign, panel["name"])

    def figures(self, panel: dict) -> Iterator[Picture]:
        """The waterfall, and the shares at all points."""
        campaign, name, rows = self.findings.campaign, panel["name"], self.rows(panel)
        if rows.empty:
            return
        x, path = shown_x(rows), campaign.folder / slug(name)
        said = joined(brief(campaign), absent_sentence(campaign, name, x), *in_words(campaign, rows))
        at = f"{short_axis_name(panel['x_name'])} = {x_text(panel['x_name'], x)}"
        title = f"{panel['title']}: from one system to the next, {at}"
        yield plot_waterfall(select(rows, x=x), path, title=title, note=said)
        if len(rows["x"].unique()) > 1:
            title = f"{panel['title']}: what the difference between the two ends of the ladder is made of"
            note = f"{SHARES} {describe(campaign)}"
            yield plot_shares(rows, path.with_name(f"{path.name}_shares"), title=title, note=note)

    def table(self, panel: dict) -> Table:
        return attribution_table(self.rows(panel), panel)

    def notes(self) -> Iterable[str | Table]:
        campaign = self.findings.campaign
        owned = [panel for panel in campaign.plan["panels"] if self.owns(panel)]
        return [sentence for panel in owned for sentence in in_words(campaign, self.rows(panel))]


def absent_sentence(campaign: Campaign, panel: str, x: object) -> str:
    """Which rungs a picture lacks; empty when none."""
    names = [rung_name(rung.name) for rung in absent_rungs(campaign, panel, x)]
    return f"Not in the ladder, for want of a verified measurement: {', '.join(names)}." if names else ""


def brief(campaign: Campaign) -> str:
    """Source and tier in few words, for a note that has much else to say."""
    sources = "/".join(sorted({run["source"] for run in campaign.runs.values() if run.get("source")}))
    tier = campaign.plan["tier"]
    return f"Source: {sources}, tier {tier}{'' if tier in ('full', 'once') else ' (not for claims)'}."


STUDY = Attribution
