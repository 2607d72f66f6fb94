"""Where a campaign's wall-clock time went, and on what it ran."""

from collections.abc import Iterator

import pandas as pd

from analysis.load import Campaign
from analysis.tables import Table

USEFUL = ("measure", "instrumented")  # the rest is what it costs to measure well


def launch_seconds(campaign: Campaign) -> pd.DataFrame:
    """One row a launch of processes: launch_id, wall seconds, and the seconds of each phase that was recorded.

    The cells of a launch share its times, so each launch counts once.
    """
    launches: dict[str, dict] = {}
    for run in campaign.runs.values():
        if run.get("started") and run.get("finished"):
            key = run.get("launch_id") or run["cell"]
            launches[key] = launches.get(key, {}) | {"wall": wall_seconds(run)} | (run.get("seconds") or {})
    return pd.DataFrame([{"launch_id": key} | seconds for key, seconds in launches.items()])


def wall_seconds(run: dict) -> float:
    """Seconds from a run's start to its end."""
    return (pd.Timestamp(run["finished"]) - pd.Timestamp(run["started"])).total_seconds()


def useful_share(launches: pd.DataFrame) -> float | None:
    """Share of the wall-clock time in which something was measured; None where it was not recorded."""
    if launches.empty:
        return None
    phases = [name for name in USEFUL if name in launches]
    launches = launches.dropna(subset=phases, how="all")  # simulated ones measure nothing
    total = sum(launches["wall"].to_list())
    return float(launches[phases].to_numpy().sum()) / total if phases and total else None


def time_table(campaign: Campaign) -> Table:
    """Seconds by phase over all launches, what no phase accounts for, and the total."""
    launches = launch_seconds(campaign)
    title = f"Wall-clock time of {len(launches)} launches"
    if launches.empty:
        return Table("time", title, launches, launches)
    total = sum(launches["wall"].to_list())
    phases = launches.drop(columns=["launch_id", "wall"]).sum().to_dict()
    phases |= {"start, stop and the rest": total - sum(phases.values()), "all": total}
    rows = [
        {"phase": name, "seconds": f"{seconds:.1f}", "share": f"{100 * seconds / total:.0f} %" if total else "–"}
        for name, seconds in phases.items()
    ]
    return Table("time", title, launches, pd.DataFrame(rows))


def environment_table(campaign: Campaign) -> Table:
    """What was recorded of machine and software; every value where cells differ."""
    found: dict[str, dict[str, None]] = {}
    for cell in campaign.frames:
        run = campaign.runs[cell]
        document = {
            "seed": run.get("seed"),
            "device": run.get("device", {}),
            **(run.get("environment") or {}),
            "ceilings": run.get("ceilings"),
        }
        for name, value in flat(document):
            found.setdefault(name, {}).setdefault(value)
    rows = [{"what": name, "value": summed(list(values))} for name, values in found.items()]
    return Table("environment", "Environment", pd.DataFrame(rows), pd.DataFrame(rows))


def flat(document: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values as text; empty values are left out."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        elif value not in (None, "", []):
            yield prefix + name, f"{value:.3g}" if isinstance(value, float) else str(value)


def summed(values: list[str]) -> str:
    """All of a few values, the first and their number of many."""
    return " / ".join(values) if len(values) <= 3 else f"{values[0]} (and {len(values) - 1} other values)"
