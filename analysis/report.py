"""A stored campaign rendered: summary.csv, figures, tables, report.html, and the short of it in the terminal."""

from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from analysis.accounting import launch_seconds, useful_share
from analysis.figures.canvas import Picture
from analysis.findings import Findings, describe, find, floor_sentence
from analysis.frames import select
from analysis.html import verdict_counts, write_html
from analysis.labels import UNSURE, in_regime, tone
from analysis.limits import limits_table
from analysis.load import coverage, device_of, regime_of, simulated_on
from analysis.panels import owner, studies
from analysis.summary import write_summary
from analysis.tables import (
    Table,
    checks_table,
    coverage_table,
    problems_table,
    write_tables,
)
from analysis.validity import write_validity

STYLES = {"good": "green", "warn": "yellow", "bad": "red", "dim": "bright_black", "": ""}
WIDE = 100  # columns from which intervals fit beside the speed-ups
FEW = 6  # columns that fit with their intervals
INTERVAL = r" \[.*?\]"
EXTRA = ("padding", "max ÷ mean rows", "entry skew, ms", "experts, % of ceiling")  # in report.html, where there is room
LONG_WORD, LONG = 14, 24  # letters: a word that may be broken, a cell that is no number
NUMERIC = tuple("~–0123456789")
MARK = "*"  # stands for "not for claims"
NOTED = 5  # checks that are named in the terminal


def render(folder: Path | str, console: Console) -> None:
    """Rebuild everything derived in a campaign's folder and print the short of it; a partial campaign will do.

    Raises ValueError when the plan cannot be read.
    """
    findings = find(folder)
    campaign, known = findings.campaign, studies(findings)
    owned = [(panel, owner(panel, known)) for panel in campaign.plan["panels"]]
    panels = [(panel, list(study.figures(panel)), study.table(panel)) for panel, study in owned]
    tables = {table.name: table for table in campaign_tables(findings)}
    added = [table for study in known for table in study.tables()]
    write_summary(campaign, findings.summary)
    write_validity(campaign, findings.checks)
    write_tables(campaign.folder, [*(table for *_, table in panels), *added, *tables.values()])
    write_html(findings, tables, panels, [section for study in known for section in study.sections()])
    notes = [one for study in known for one in study.notes()]
    print_report(findings, tables, [table for *_, table in panels], notes, console)
    print_files(campaign.folder, [picture for _, pictures, _ in panels for picture in pictures], console)


def campaign_tables(findings: Findings) -> list[Table]:
    """The tables that are neither a panel's nor a study's."""
    cells = coverage(findings.campaign)
    return [
        checks_table(findings.checks),
        coverage_table(cells),
        problems_table(cells),
        *(limits_table(findings.campaign, panel) for panel in findings.campaign.plan["panels"]),
    ]


def print_report(
    findings: Findings, tables: dict[str, Table], panels: list[Table], notes: list[str | Table], console: Console
) -> None:
    """Panels, what studies tell, problems, one line of checks, the noise floor."""
    plan = findings.campaign.plan
    console.print(Text.assemble((plan["experiment"], "bold"), "  ", describe(findings.campaign), "\n"))
    for table in panels:
        if len(table.shown):
            console.print(in_terminal(table.title, fitted(table.shown, console.width)), "")
    for one in notes:
        console.print(Text(one) if isinstance(one, str) else in_terminal(one.title, one.shown), "")
    problems = tables["problems"]
    if len(problems.shown):
        console.print(in_terminal(problems.title, problems.shown), "")
    else:
        devices = [device_of(run) for run in findings.campaign.runs.values()]
        whose = "the outputs of those that were not simulated" if any(devices) else "their outputs"
        checked = "" if all(devices) else f", and {whose} were right"
        console.print(f"All {len(devices)} cells ran{checked}.", highlight=False)
    console.print(Text(checks_line(tables["validity"].shown)))
    if not simulated_on(findings.campaign):
        console.print(Text(in_regime(floor_sentence(findings.floor), regime_of(findings.campaign))))
    shown = [*panels, *(one for one in notes if isinstance(one, Table))]
    if any(text.endswith(UNSURE) for table in shown for text in table.shown.astype(str).to_numpy().ravel()):
        console.print(Text(f"{MARK}: {UNSURE}."))
    if (share := useful_share(launch_seconds(findings.campaign))) is not None:
        console.print(Text(f"Useful measuring: {100 * share:.0f} % of the wall time of all launches."))


def fitted(shown: pd.DataFrame, width: int) -> pd.DataFrame:
    """A panel's table for a terminal: intervals where they fit, of speed-ups if there are any; x once a point."""
    ratios = [name for name in shown if name.startswith("speed-up")]
    if ratios or width < WIDE:
        shown = shown.drop(columns=[name for name in EXTRA if name in shown])
    kept = [] if width < WIDE else ratios or (list(shown) if len(shown.columns) <= FEW else [])
    stripped = {name: shown[name].str.replace(INTERVAL, "", regex=True) for name in shown if name not in kept}
    first = shown.columns[0]
    return shown.assign(**stripped | {first: shown[first].where(~shown[first].duplicated(), "")})


def in_terminal(title: str, shown: pd.DataFrame) -> RichTable:
    """Text as text (no markup), right where it is a number, coloured where it is a verdict; words stay whole."""
    table = RichTable(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    short = {name: [str(text).replace(f", {UNSURE}", MARK) for text in shown[name]] for name in shown}
    for name, texts in short.items():
        longest, intervals = max(map(len, texts)), any(text.endswith("]") for text in texts)
        numbers = longest <= LONG and any(text.startswith(NUMERIC) for text in texts)
        no_wrap = numbers and intervals
        widest = max(map(len, f"{name} {' '.join(texts)}".split()))
        look = {"justify": "right" if numbers else "left", "no_wrap": no_wrap, "overflow": "fold"}
        table.add_column(
            Text(str(name).replace(", ", ",\n")), min_width=None if no_wrap else min(widest, LONG_WORD), **look
        )
    for texts, row in zip(zip(*short.values(), strict=True), shown.to_numpy(), strict=True):
        table.add_row(*(Text(text, style=STYLES[tone(full)]) for text, full in zip(texts, row, strict=True)))
    return table


def checks_line(shown: pd.DataFrame) -> str:
    """`Validity: 22 pass, 2 warn. V07 warn: ...; V19 warn: ...`, failures first."""
    noted = pd.concat([select(shown, verdict=verdict) for verdict in ("fail", "warn")]).to_dict("records")
    which = [f"{row['check']} {row['verdict']}: {row['title']}" for row in noted[:NOTED]]
    which += [f"{len(noted) - NOTED} more in report.html"] if len(noted) > NOTED else []
    return f"Validity: {verdict_counts(shown)}. {'; '.join(which)}".strip()


def print_files(folder: Path, pictures: list[Picture], console: Console) -> None:
    """Say what was written."""
    figures = " ".join(picture.png.name for picture in pictures)
    parts = ["report.html", "summary.csv", "validity.json", "tables/", *([f"{figures} (and .svg)"] if figures else [])]
    console.print(Text(f"wrote in {folder}: {', '.join(parts)}"), soft_wrap=True)
