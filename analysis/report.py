"""A stored campaign rendered: summary.csv, figures, tables in the terminal. Offline, from raw rows."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.figures import plot_panel
from analysis.frames import select
from analysis.labels import number, series_names, short_axis_name, system_name, times, with_interval
from analysis.load import Campaign, coverage, load_campaign
from analysis.reference import load_reference, published_points
from analysis.summary import summarise, write_summary
from analysis.verdict import plain_table, print_verdicts, verdict_table

STATISTICS = (
    "Bars: 95 % intervals. Layer speed-ups: ratios of means, as published. All else: medians of the slowest rank."
)
SYSTEM_METRICS = {
    "ttft_ms": ("TTFT, ms", number),
    "layer_moe_ms": ("MoE layer, ms", number),
    "speedup_ttft": ("speed-up, TTFT", times),
    "padding": ("padding", number),
    "imbalance": ("imbalance", number),
}


def render(folder: Path | str, console: Console) -> None:
    """Rebuild summary.csv and the figures of a campaign's folder and print its tables; a partial campaign will do."""
    campaign = load_campaign(folder)
    summary = summarise(campaign)
    written = [write_summary(campaign, summary)]
    console.print(f"[bold]{campaign.plan['experiment']}[/bold]  {describe(campaign)}", highlight=False)
    published = published_points(campaign.plan, load_reference())
    # The verdicts show these; any other system, and any other experiment, gets a table of its own.
    compared = set(published["system"]) | set(published["baseline"])
    for panel in campaign.plan["panels"]:
        written += draw(campaign, summary, panel, published)
        measured = set(select(summary, experiment=panel["name"])["system"])
        if measured - compared or (measured and campaign.plan.get("baseline") not in measured):
            console.print(systems_table(summary, panel))
    if len(published):
        print_verdicts(verdict_table(summary, published), console)
    print_problems(coverage(campaign), console)
    for path in written:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def draw(campaign: Campaign, summary: pd.DataFrame, panel: dict, published: pd.DataFrame) -> list[Path]:
    """The figure of a panel that has more than one measured point."""
    if len(select(summary, experiment=panel["name"])["x"].unique()) < 2:
        return []
    note = f"{describe(campaign)} {STATISTICS} {absent(campaign, panel)}".strip()
    path = campaign.folder / panel["name"]
    return plot_panel(summary, panel, published, path, baseline=campaign.plan.get("baseline"), note=note)


def describe(campaign: Campaign) -> str:
    """Where the numbers come from: source, cluster, G, precision, engines, scale, tier, launches."""
    ok = [campaign.runs[cell] for cell in campaign.frames]
    if not ok:
        return "No cell has been measured."
    plan = campaign.plan
    launches = len({run["launch"] for run in ok})
    facts = [
        f"Source: {listed(run['source'] for run in ok)}",
        *places(ok[0]),
        f"G = {listed(run['point']['world_size'] for run in ok)} ranks",
        f"precision {listed(run['precision'] for run in ok)}",
        f"engine {listed(run['engine'] for run in ok)}",
        f"scale {plan['scale']}",
        f"tier {plan['tier']}" + ("" if plan["tier"] == "full" else " (not for claims)"),
        f"{launches} launch{'es' if launches > 1 else ''}",
    ]
    return ", ".join(facts) + "."


def listed(values: Iterable[object]) -> str:
    return "/".join(sorted({str(value) for value in values}))


def places(run: dict) -> list[str]:
    """The cluster with its device, and the network model where one was used."""
    cluster, network = run["config"].get("cluster", {}), run["config"].get("network", {})
    where = [f"cluster {cluster['kind']} on {cluster['device']}"] if cluster else []
    return where + ([f"network {network['name']}"] if network and run["source"] == "emulated" else [])


def absent(campaign: Campaign, panel: dict) -> str:
    """What a figure cannot show, in a sentence."""
    cells = select(coverage(campaign), experiment=panel["name"])
    failed = cells.loc[cells["state"] != "ok"].to_dict("records")
    unchecked = cells.loc[(cells["state"] == "ok") & (cells["correctness"] != "passed")].to_dict("records")
    where = [f"{system_name(row['system'] or row['cell'])} at {row['x']} ({row['state']})" for row in failed]
    where += [f"speed-up of {system_name(row['system'])} at {row['x']} (output not verified)" for row in unchecked]
    return f"Without data: {', '.join(dict.fromkeys(where))}." if where else ""


def systems_table(summary: pd.DataFrame, panel: dict) -> Table:
    """Every system of a panel, a row a point, with intervals."""
    rows = select(summary, experiment=panel["name"])
    table = plain_table(f"{panel['title']} ({listed(rows['source'])})")
    table.add_column(short_axis_name(panel["x_name"]), justify="right")
    table.add_column("system")
    shown = {metric: look for metric, look in SYSTEM_METRICS.items() if metric in set(rows["metric"])}
    for title, _ in shown.values():
        table.add_column(title, justify="right")
    for x in rows["x"].unique():
        label = str(x)
        for (system, engine, precision), name in series_names(rows).items():
            mine = select(rows, system=system, engine=engine, precision=precision, x=x).set_index("metric")
            if len(mine):
                table.add_row(label, name, *(cell_text(mine, metric, form) for metric, (_, form) in shown.items()))
                label = ""
    return table


def cell_text(rows: pd.DataFrame, metric: str, form) -> str:
    if metric not in rows.index:
        return "–"
    value, low, high = rows.loc[metric, ["value", "ci_low", "ci_high"]]
    # Padding and imbalance are counted, not timed: summary.csv has their spread over iterations.
    return with_interval(value, low, high, form) if metric.endswith(("_ms", "_ttft")) else form(value)


def print_problems(cells: pd.DataFrame, console: Console) -> None:
    """Cells without numbers and cells whose speed-up is withheld, gathered by system and reason."""
    cells = cells.drop_duplicates("cell").assign(system=lambda c: c["system"].fillna("–"))
    wrong = (cells["state"] == "ok") & (cells["correctness"] != "passed")
    cells.loc[wrong, "reason"] = "Speed-up withheld, output " + cells.loc[wrong, "correctness"] + "."
    bad = cells.loc[wrong | (cells["state"] != "ok")].fillna({"reason": ""})
    if bad.empty:
        console.print(f"All {len(cells)} cells ran, and their outputs were right.", highlight=False)
        return
    table = plain_table(f"{len(bad)} of {len(cells)} cells need attention")
    for name in ("system", "cells", "at", "state", "reason"):
        table.add_column(name, overflow="fold")
    for (system, state, reason), rows in bad.groupby(["system", "state", "reason"], sort=False):
        where = {f"{short_axis_name(row['x_name'])} {row['x']}": None for row in rows.to_dict("records")}
        table.add_row(system_name(system), str(len(rows)), ", ".join(where), state, escape(reason))
    console.print(table)
