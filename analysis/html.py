"""One self-contained report.html of a campaign: nothing is fetched, nothing runs, all that a user named is escaped."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.accounting import environment_table, launch_seconds, time_table, useful_share
from analysis.checks.evidence import PASS, SEVERITY, SKIP
from analysis.figures.canvas import Picture
from analysis.findings import Findings, describe
from analysis.labels import place_text, system_name, tone
from analysis.load import coverage, simulated_on
from analysis.study import Section
from analysis.tables import Table

TEMPLATES = Path(__file__).parent / "templates"
PASSES_SHOWN = 3  # of each check; validity.json has them all
NUMBER = r"$|–$|~?-?\d[\d.,]*(×| %)?( \[[^\]]*\])?$"


def write_html(
    findings: Findings,
    tables: Mapping[str, Table],
    panels: Sequence[tuple[dict, list[Picture], Table]],
    sections: Sequence[Section],
) -> Path:
    """Write report.html into the campaign's folder.

    tables: the campaign's tables by name. panels: each panel of the plan with its figures and its table. sections: what
    studies add.
    """
    campaign = findings.campaign
    context = {
        "plan": campaign.plan,
        "described": describe(campaign),
        "simulated": bool(simulated_on(campaign)),
        "doubts": findings.doubts(),
        "glance": glance(findings, tables["validity"]),
        "panels": [(panel, [(p, inline_svg(p, index, i)) for i, p in enumerate(pictures)], table)
                   for index, (panel, pictures, table) in enumerate(panels)],
        "sections": sections,
        "tables": tables,
        "time": time_table(campaign),
        "environment": environment_table(campaign),
        "checks": check_details(findings),
    }  # fmt: skip
    path = campaign.folder / "report.html"
    path.write_text(template().render(context), encoding="utf-8")
    return path


def template():
    """The report's template; it escapes what it is given, and a name that it lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"tone": tone, "kind": cell_kind, "kinds": column_kinds}
    return environment.get_template("report.html.j2")


def column_kinds(table: pd.DataFrame) -> list[str]:
    """`number` for each column of nothing but numbers: they line up at their right edge."""
    return ["number" if texts.map(str).str.match(NUMBER).all() else "" for _, texts in table.items()]


def cell_kind(text: object) -> str:
    """`long` for text that may wrap, `prose` for sentences."""
    return "prose" if len(str(text)) > 60 else "long" if len(str(text)) > 16 and not re.match(NUMBER, str(text)) else ""


def inline_svg(picture: Picture, *place: int) -> Markup:
    """The figure's SVG element with names of its own, because all figures share one document.

    Safe to inline: matplotlib escapes every text that it writes.
    """
    svg = picture.svg.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    prefix = "f" + "-".join(map(str, place)) + "-"
    svg = re.sub(r'(\sid="|href="#|url\(#)', lambda match: match[1] + prefix, svg)
    label = Markup('<svg role="img" aria-label="{}"').format(picture.title)
    return Markup(svg.replace("<svg", label, 1))


def glance(findings: Findings, checks: Table) -> dict[str, str]:
    """The four answers that a reader wants first."""
    cells = coverage(findings.campaign).drop_duplicates("cell")
    ok = cells["state"].to_list().count("ok")
    launches = launch_seconds(findings.campaign)
    share = useful_share(launches) if len(launches) else None
    noise = {"noise floor": " / ".join(f"±{100 * one.value:.1f} %" for one in findings.floor.values()) or "unknown"}
    minutes = f"{launches['wall'].sum() / 60:.1f} min" if len(launches) else "unknown"
    return {
        "cells": f"{ok} of {len(cells)} measured",
        "checks": verdict_counts(checks.shown),
        **({} if simulated_on(findings.campaign) else noise),
        "wall-clock": minutes + (f", {100 * share:.0f} % of it measuring" if share is not None else ""),
    }


def verdict_counts(checks: pd.DataFrame) -> str:
    """`20 pass, 2 warn, 1 fail`."""
    counts = Counter(checks["verdict"])
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("pass", "warn", "fail") if verdict in counts)


def check_details(findings: Findings) -> dict[str, pd.DataFrame]:
    """Of each check what it found, the worst first, cells of which it says the same together; only a few that pass."""
    names = cell_names(findings)
    details = {}
    for check, rows in findings.checks.groupby("check", sort=False):
        cells = rows["cell"].map(lambda cell: names.get(cell, "the campaign"))
        rows = rows.assign(cells=cells)
        same = rows.groupby(["verdict", "detail"], sort=False, as_index=False).agg({"cells": together})
        same = same.sort_values("verdict", key=lambda of: -of.map(SEVERITY.index), kind="stable")
        fine = same["verdict"].isin([PASS, SKIP])
        details[str(check)] = pd.concat([same[~fine], same[fine].head(PASSES_SHOWN)])[["cells", "verdict", "detail"]]
    return details


def together(cells: pd.Series) -> str:
    """One cell by name, several by the first and their number."""
    return cells.iloc[0] if len(cells) == 1 else f"{cells.iloc[0]} (and {len(cells) - 1} more)"


def cell_names(findings: Findings) -> dict[str, str]:
    """What a cell is, for people: system, point, launch."""
    return {row["cell"]: cell_name(row) for row in coverage(findings.campaign).to_dict("records")}


def cell_name(row: dict) -> str:
    """A row of `coverage` in words."""
    point = place_text(row)
    if row["state"] == "missing":
        return f"{row['cell']}, {point}"
    twin = " (A/A twin)" if row["twin"] else ""
    return f"{system_name(row['system'])}{twin}, {point}, launch {row['launch']:.0f}"
