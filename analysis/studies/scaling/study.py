"""Panels of kind `scaling`: a figure for each value of the second axis."""

from collections.abc import Iterator

import pandas as pd

from analysis.figures.canvas import Picture
from analysis.figures.panels import absent, joined
from analysis.findings import describe
from analysis.frames import select
from analysis.labels import number, short_axis_name, system_name, x_text
from analysis.load import coverage
from analysis.studies.scaling.figure import plot_scaling
from analysis.studies.scaling.frame import COLUMNS, scaling_frame
from analysis.study import Study
from analysis.tables import Table, slug

RANKS = "Medians of the slowest rank; memory of the rank that holds most, weights included."


class Scaling(Study):
    """Layer time and memory against the number of ranks."""

    kinds = ("scaling",)

    def figures(self, panel: dict) -> Iterator[Picture]:
        campaign = self.findings.campaign
        frame = scaling_frame(campaign, panel)
        for y in frame["y"].unique():
            here, at, end = frame.loc[frame["y"] == y], "", ""
            if panel.get("y_name"):
                at, end = f", {short_axis_name(panel['y_name'])} {x_text(panel['y_name'], y)}", f"_{y}"
            note = joined(RANKS, describe(campaign, panel), absent(campaign, panel))
            path = campaign.folder / slug(f"{panel['name']}{end}")
            yield plot_scaling(here, path, title=f"{panel['title']}{at}", note=note)

    def table(self, panel: dict) -> Table:
        """A row a y, system and quantity, a column a number of ranks; where there is no number, the cell's state."""
        frame, shown = scaling_frame(self.findings.campaign, panel), []
        states = select(coverage(self.findings.campaign), experiment=panel["name"])
        why = {(row["y"], row["x"], row["system"]): row["state"] for row in states.to_dict("records")}
        found = {(row["y"], row["ranks"], row["system"]): row for row in frame.to_dict("records")}
        ranks = list(dict.fromkeys(point["x"] for point in panel["points"]))
        for y in dict.fromkeys(point.get("y") for point in panel["points"]):
            place = {short_axis_name(panel["y_name"]): x_text(panel["y_name"], y)} if panel.get("y_name") else {}
            for system in dict.fromkeys(states["system"].dropna()):
                for column, title in COLUMNS.items():
                    places = {str(rank): (y, rank, system) for rank in ranks}
                    cells = {
                        rank: number(found[place][column]) if place in found else why.get(place, "–")
                        for rank, place in places.items()
                    }
                    shown.append(place | {"system": system_name(system), "": title} | cells)
        title = f"{panel['title']}: by number of ranks"
        return Table(slug(panel["name"]), title, frame, pd.DataFrame(shown))


STUDY = Scaling
