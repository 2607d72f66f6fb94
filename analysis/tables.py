"""A campaign's tables: numbers for a program (CSV), text for a reader (Markdown, LaTeX, the report, a terminal)."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from analysis.frames import select
from analysis.labels import place_text, system_name, x_text
from analysis.load import TRUSTED
from analysis.validity import verdicts_by_check


@dataclass(frozen=True)
class Table:
    """`raw` has the numbers, `shown` the same as text under the headings that a reader sees."""

    name: str
    title: str
    raw: pd.DataFrame
    shown: pd.DataFrame


def checks_table(checks: pd.DataFrame) -> Table:
    """One row a check with the worst verdict of its cells; rows of `judge`."""
    return Table("validity", "Validity checks", checks, verdicts_by_check(checks))


def coverage_table(cells: pd.DataFrame) -> Table:
    """A row a point, a column a series, the states of its launches as text; twins (A/A) beside what they repeat."""
    words = map(place_text, cells.to_dict("records"))
    cells = cells.assign(place=list(zip(cells["experiment"], words, strict=True)))
    twins = [" (A/A twin)" if twin is True else "" for twin in cells["twin"].to_list()]
    cells["column"] = cells["system"].fillna("not run").map(system_name) + twins
    columns = list(dict.fromkeys(cells["column"]))
    shown = [
        {"panel": panel, "point": x_text(rows["x_name"].iloc[0], rows["x"].iloc[0]) if flat(rows) else words}
        | {column: states(select(rows, column=column)) for column in columns}
        for (panel, words), rows in ((place, select(cells, place=place)) for place in dict.fromkeys(cells["place"]))
    ]
    return Table("coverage", "Cells by point and system", cells.drop(columns=["place", "column"]), pd.DataFrame(shown))


def flat(cells: pd.DataFrame) -> bool:
    """Whether the panel of these cells has one axis."""
    return not isinstance(cells["y_name"].iloc[0], str)


def problems_table(cells: pd.DataFrame) -> Table:
    """Cells without numbers and cells whose speed-up is withheld, gathered by system and reason."""
    cells = cells.drop_duplicates("cell").assign(system=lambda c: c["system"].fillna("–"))
    wrong = (cells["state"] == "ok") & ~cells["correctness"].isin(TRUSTED)
    cells.loc[wrong, "reason"] = "Speed-up withheld, output " + cells.loc[wrong, "correctness"] + "."
    bad = cells.loc[wrong | (cells["state"] != "ok")].fillna({"reason": ""})
    shown = [
        {"system": system_name(system), "cells": str(len(rows)), "at": where(rows), "state": state, "reason": reason}
        for (system, state, reason), rows in bad.groupby(["system", "state", "reason"], sort=False)
    ]
    return Table("problems", f"{len(bad)} of {len(cells)} cells need attention", bad, pd.DataFrame(shown))


def where(cells: pd.DataFrame) -> str:
    """`experts 64, experts 256, batch 10`."""
    rows = cells.to_dict("records")
    return ", ".join(dict.fromkeys(map(place_text, rows)))


def states(cells: pd.DataFrame) -> str:
    """`2 ok`, or `1 ok, 1 oom`; and whether an output was not verified."""
    counts = [f"{count} {state}" for state, count in Counter(cells["state"]).items()]
    verified = select(cells, state="ok")["correctness"].isin(TRUSTED).to_list()
    return ", ".join(counts + (["output not verified"] if False in verified else []))


def write_tables(folder: Path, tables: Iterable[Table]) -> list[Path]:
    """Each table as CSV (numbers), Markdown and LaTeX (text) in `folder`/tables; the paths written."""
    (folder / "tables").mkdir(exist_ok=True)
    return [path for table in tables if len(table.shown) for path in write_table(folder / "tables" / table.name, table)]


def write_table(path: Path, table: Table) -> Iterator[Path]:
    """Write `path`.csv with every number, .md and .tex with what is shown; yields their paths."""
    latex = f"% {one_line(table.title)}\n{table.shown.to_latex(index=False, escape=True)}"
    texts = {".csv": table.raw.to_csv(index=False), ".md": markdown(table), ".tex": latex}
    for suffix, text in texts.items():
        target = path.with_name(path.name + suffix)
        target.write_text(text)
        yield target


def markdown(table: Table) -> str:
    """A heading and a table; what a cell holds is text, never markup."""
    rows = [list(table.shown.columns), ["---"] * len(table.shown.columns), *table.shown.to_numpy().tolist()]
    lines = ["| " + " | ".join(markdown_text(str(text)) for text in row) + " |" for row in rows]
    return "\n".join([f"**{markdown_text(table.title)}**", "", *lines, ""])


def markdown_text(text: str) -> str:
    """Text in which neither HTML nor Markdown finds anything to interpret."""
    return re.sub(r"([\\|*_`\[\]~])", r"\\\1", escape(one_line(text), quote=False))


def one_line(text: str) -> str:
    """Runs of white space as one space."""
    return " ".join(text.split())


def slug(name: str) -> str:
    """A name as a file's name: what a file system or a browser might take for more than a letter becomes `-`."""
    return re.sub(r"[^\w.-]+", "-", name).lstrip(".") or "panel"
