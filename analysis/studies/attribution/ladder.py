"""The ladder from the paper's baseline to its system: measured systems that differ by one change from rung to rung."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.load import Campaign
from analysis.studies.attribution.account import TOTAL, accounts_of, cells_of, intervals, panel_named, tells_transfers

COLUMNS = [
    *["experiment", "x_name", "x", "kind", "step", "above", "below", "cause", "change", "part"],
    *["value", "ci_low", "ci_high", "percent", "percent_low", "percent_high", "launches", "tier"],
]
BALANCED = "_balanced"  # the panel of that name has the rungs under router=balanced


class Rung(NamedTuple):
    """A measured system of the ladder; `cause` and `change` say what differs from the rung above it."""

    system: str
    cause: str
    change: str
    balanced: bool = False  # measured under the balanced router

    @property
    def name(self) -> str:
        """The system, marked where it was measured under the balanced router."""
        return self.system + (BALANCED if self.balanced else "")


# From the paper's baseline to its system, one change at a time.
LADDER = [
    Rung("deepspeed", "", ""),
    Rung("deepspeed_lossless", "padding", "smallest lossless capacity"),
    Rung("deepspeed_dropless", "padding", "the busiest expert's capacity"),
    Rung("ep", "padded layout", "real rows only"),
    Rung("ep_round_robin", "imbalance", "hot experts spread"),
    Rung("ep_round_robin", "imbalance", "even load", balanced=True),
    Rung("moeshard_published", "sharding", "sharded, Algorithm 1"),
    Rung("moeshard_no_megablocks", "implementation", "static shapes, no metadata"),
    Rung("moeshard", "engine", "our engine instead of a loop"),
]
PLAIN, SHARDED = "ep", "moeshard"  # the two that are held against one another apart from the ladder
SHOWN = {"num_experts": 128}  # the point of which every step is shown
CAUSES = ["padding", "padded layout", "imbalance", "sharding", "implementation", "engine"]


class Climb(NamedTuple):
    """The rungs of one point that were measured, and the account of each: rows launches (the same in all), ms."""

    rungs: list[Rung]
    accounts: list[pd.DataFrame]


def attribute(campaign: Campaign, panel: str) -> pd.DataFrame:
    """Every point of a panel with at least two measured rungs, in the columns COLUMNS; all times in ms.

    kind: `level` (a rung's own account), `step` (one rung to the next, saved is positive), `whole` (first to last).
    percent: share of the whole difference, its interval scaled by the mean difference.
    """
    where = panel_named(campaign, panel)
    place = {"experiment": panel, "x_name": where["x_name"], "tier": campaign.plan["tier"]}
    frames = [climb_rows(climb(campaign, panel, point["x"])).assign(x=point["x"]) for point in where["points"]]
    return pd.concat([pd.DataFrame(columns=["x"]), *frames], ignore_index=True).assign(**place).reindex(columns=COLUMNS)


def climb(campaign: Campaign, panel: str, x: object) -> Climb:
    """The ladder at one point, in the launches that all its measured rungs share; steps over a missing rung merge."""
    found = list(measured(campaign, panel, x))
    launches = sorted(set.intersection(*(set(account.index) for _, account in found))) if found else []
    if len(found) < 2 or not launches:
        return Climb([], [])
    return Climb(merged([rung for rung, _ in found]), [account.loc[launches] for _, account in found])


def merged(found: list[Rung]) -> list[Rung]:
    """The rungs that were found, each with the changes of the missing ones before it; a mix is no single cause."""
    rungs, start = [found[0]], LADDER.index(found[0])
    for rung in found[1:]:
        stop = LADDER.index(rung)
        between = LADDER[start + 1 : stop + 1]
        causes = dict.fromkeys(one.cause for one in between)
        rungs.append(rung._replace(cause=" and ".join(causes), change="; ".join(one.change for one in between)))
        start = stop
    return rungs


def absent_rungs(campaign: Campaign, panel: str, x: object) -> list[Rung]:
    """The rungs of the ladder without a verified measurement at a point."""
    found = {rung.name for rung, _ in measured(campaign, panel, x)}
    return [rung for rung in LADDER if rung.name not in found]


def climb_rows(ladder: Climb) -> pd.DataFrame:
    """The rows of `attribute` of one point."""
    rungs, accounts = ladder
    if not rungs:
        return pd.DataFrame()
    frames = [label(intervals(a), "level", i, rung.name) for i, (rung, a) in enumerate(zip(*ladder, strict=True))]
    for i, rung in enumerate(rungs[1:], start=1):
        saved = intervals(accounts[i - 1] - accounts[i])
        frames.append(label(saved, "step", i, rungs[i - 1].name, rung.name, rung.cause, rung.change))
    whole = intervals(accounts[0] - accounts[-1])
    frames.append(label(whole, "whole", len(rungs), rungs[0].name, rungs[-1].name))
    rows = pd.concat(frames, ignore_index=True)
    return rows.assign(**percents(rows, float(whole.loc[TOTAL, "value"])))


def label(found: pd.DataFrame, kind: str, step: int, above: str, below: str = "", cause: str = "", change: str = ""):
    """Rows of `intervals`, with what they are of as columns."""
    place = {"kind": kind, "step": step, "above": above, "below": below, "cause": cause, "change": change}
    return found.rename_axis("part").reset_index().assign(**place)


def percents(rows: pd.DataFrame, whole: float) -> dict[str, np.ndarray]:
    """Percent of the whole difference with their bounds; a level is no share of it."""
    share = (100 / whole if whole else np.nan) * rows[["value", "ci_low", "ci_high"]].to_numpy(dtype=float)
    share[rows["kind"] == "level"] = np.nan
    bounds = np.sort(share[:, 1:], axis=1)
    return {"percent": share[:, 0], "percent_low": bounds[:, 0], "percent_high": bounds[:, 1]}


def measured(campaign: Campaign, panel: str, x: object) -> Iterator[tuple[Rung, pd.DataFrame]]:
    """The rungs that have verified cells at a point, each with its account: rows launches."""
    cells = [(rung, rung_cells(campaign, panel, x, rung)) for rung in LADDER]
    separable = tells_transfers(campaign, (cell for _, found in cells for cell in found.values()))
    for rung, found in cells:
        accounts = accounts_of(campaign, found, separable)
        if len(accounts):
            yield rung, accounts


def rung_cells(campaign: Campaign, panel: str, x: object, rung: Rung) -> dict[int, str]:
    """The cells of a rung at a point by launch; none where the balanced panel is missing or has another router."""
    if not rung.balanced:
        return cells_of(campaign, panel, x, rung.system)
    if panel + BALANCED not in {one["name"] for one in campaign.plan["panels"]}:
        return {}
    found = cells_of(campaign, panel + BALANCED, x, rung.system)
    routers = {launch: campaign.runs[cell]["config"]["router"].get("name") for launch, cell in found.items()}
    return {launch: cell for launch, cell in found.items() if routers[launch] == "balanced"}
