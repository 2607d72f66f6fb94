"""What a study is: one question's own figures, tables and sentences in the report of a campaign.

A study is a folder of analysis/studies whose `study.py` names its class STUDY. It may use everything here; nothing here
knows a study, but for `found`, which looks into that folder.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from analysis.figures.canvas import Picture
from analysis.findings import Findings
from analysis.tables import Table

FOLDER = Path(__file__).parent / "studies"


class Section(NamedTuple):
    """A part of report.html: sentences and tables below a heading; the name is its anchor."""

    name: str
    title: str
    parts: list[str | Table]


class Study:
    """The report's panels that are a study's own, and what it adds to the report of the whole campaign."""

    kinds: tuple[str, ...] = ()  # of the panels that it draws

    def __init__(self, findings: Findings) -> None:
        self.findings = findings

    def owns(self, panel: dict) -> bool:
        """Whether the study draws this panel."""
        return kind_of(panel) in self.kinds

    def figures(self, panel: dict) -> Iterator[Picture]:
        """Write the figures of a panel of its own; none where there is nothing to show yet."""
        raise NotImplementedError

    def table(self, panel: dict) -> Table:
        """What these figures show."""
        raise NotImplementedError

    def tables(self) -> list[Table]:
        """Tables of the whole campaign."""
        return []

    def notes(self) -> Iterable[str | Table]:
        """What the terminal shows below the panels."""
        return []

    def sections(self) -> list[Section]:
        """What report.html shows below the panels."""
        return []


def kind_of(panel: dict) -> str:
    """As what a panel is to be drawn."""
    return panel.get("kind", "speedup")


def found(findings: Findings) -> list[Study]:
    """Every study there is, in the order of their names, on one campaign."""
    names = sorted(path.parent.name for path in FOLDER.glob("*/study.py"))
    return [import_module(f"analysis.studies.{name}.study").STUDY(findings) for name in names]
