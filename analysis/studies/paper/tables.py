"""The paper's points and claims beside ours, as tables."""

import pandas as pd

from analysis.frames import select
from analysis.labels import UNSURE, short_axis_name, times, with_interval, x_text
from analysis.studies.paper.judges import DIRECTION, FAILED, NOT_MEASURED, NOT_TESTABLE, NOTHING, REPRODUCED
from analysis.tables import Table

JUDGED = {REPRODUCED, DIRECTION, FAILED}


def verdicts_table(verdicts: pd.DataFrame) -> Table:
    """Published against ours, point by point."""
    rows = [
        {
            "figure": row["figure"],
            "paper's point": f"{short_axis_name(row['x_name'])} {x_text(row['x_name'], row['published_x'])}",
            "here": x_text(row["x_name"], row["x"]),
            "system": row["series"],
            "published, layer": times(row["published"]),
            "ours, layer": with_interval(row["layer"], row["layer_low"], row["layer_high"], times),
            "verdict": not_for_claims(row["verdict"], row["claimable"]),
            "recomputed, TTFT": times(row["recomputed_ttft"]),
            "ours, TTFT": with_interval(row["ttft"], row["ttft_low"], row["ttft_high"], times),
        }
        for row in verdicts.to_dict("records")
    ]
    return Table("verdicts", "Published points against ours", verdicts, pd.DataFrame(rows))


def words_table(claims: pd.DataFrame) -> Table:
    """What the paper says in words, against ours; rows of `claims_table`."""
    columns = ["claim", "figure", "series", "published", "recomputed", "ours", "verdict"]
    devices = sorted(set(claims["device"]) - {""})
    columns += ["simulated", "on simulated"] if devices else []
    shown = claims.filter([*columns, "cause"]).astype(object).fillna("").astype(str)
    shown["verdict"] = [not_for_claims(*row) for row in claims[["verdict", "claimable"]].to_numpy()]
    names = {"simulated": f"simulated, {'/'.join(devices)}", "on simulated": "on it"}
    shown = shown.rename(columns={"series": "system", "cause": "likely cause"} | names)
    return Table("claims", "What the paper says, and what was found here", claims, shown)


def not_for_claims(verdict: str, claimable: bool) -> str:
    """A verdict on too few measurements, or on noise, says so."""
    return f"{verdict}, {UNSURE}" if verdict in JUDGED and not claimable else verdict


def tested_claims(table: Table) -> Table:
    """Of `words_table` the claims that a verdict was found for, in the columns that a terminal has room for."""
    shown = table.shown
    simulated = [name for name in shown if name == "on it" or name.startswith("simulated")]
    tested = ~shown["verdict"].isin([NOT_MEASURED, NOT_TESTABLE])
    if simulated:
        tested |= shown["on it"] != NOTHING
    columns = ["claim", "system", "ours", "verdict", *simulated]
    return Table(table.name, table.title, table.raw, shown.loc[tested].filter(columns))


def with_verdicts(table: Table, panel: dict, verdicts: pd.DataFrame) -> Table:
    """A panel's table with the published value and its verdict beside the series that it stands for."""
    if verdicts.empty or (here := select(verdicts, experiment=panel["name"])).empty:
        return table
    by_place = {(x_text(panel["x_name"], row["x"]), row["series"]): row for row in here.to_dict("records")}
    places = zip(table.shown[short_axis_name(panel["x_name"])], table.shown["system"], strict=True)
    rows = [by_place.get(place) for place in places]
    shown = table.shown.assign(
        paper=[times(row["published"]) if row else "" for row in rows],
        verdict=[not_for_claims(row["verdict"], row["claimable"]) if row else "" for row in rows],
    )
    return Table(table.name, table.title, table.raw, shown)
