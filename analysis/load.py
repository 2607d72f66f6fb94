"""A stored campaign and questions about it; what is missing, failed or unreadable stays visible as a state."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.files import read_cell_table, read_json, read_runs, read_samples, undisturbed
from analysis.labels import remember
from analysis.schema import COLLECTIVE_COLUMNS, CORRUPT

SIMULATED = "simulated"  # the source of numbers of a described device
TRUSTED = ("passed", SIMULATED)  # what `correctness` says of cells whose times count
RUN_COLUMNS = ["system", "engine", "precision", "twin"]


@dataclass(frozen=True)
class Campaign:
    """A plan and what became of its cells: `runs` has every planned cell, `frames` the rows of those in state ok."""

    folder: Path
    plan: dict
    runs: dict[str, dict]
    frames: dict[str, pd.DataFrame]

    def samples(self) -> pd.DataFrame:
        """All rows of all ok cells, with system, engine, precision and the workload point as columns."""
        joined = [frame.assign(**run_columns(self.runs[cell])) for cell, frame in self.frames.items()]
        return pd.concat(joined, ignore_index=True) if joined else pd.DataFrame(columns=["cell", *RUN_COLUMNS])

    def routing(self, cell: str) -> pd.DataFrame:
        """Realised and intended tokens of an ok cell, one row a layer, iteration, rank and expert; read when asked for.

        Columns: layer, iteration, rank, expert, tokens, intended. Experts without tokens may have no row.
        """
        return read_cell_table(self.folder, cell, "routing")

    def collectives(self, cell: str) -> pd.DataFrame:
        """What each rank of an ok cell moved in every observed layer; no rows where the cluster was not emulated.

        Times are in ms since the layer began. sent_to: bytes to each rank of the collective.
        """
        found = read_cell_table(self.folder, cell, "collectives")
        return found if len(found.columns) else pd.DataFrame(columns=COLLECTIVE_COLUMNS)


def run_columns(run: dict) -> dict:
    """What tables of cells show of a run.json."""
    return {name: run[name] for name in RUN_COLUMNS} | run["point"]


def load_campaign(folder: Path | str) -> Campaign:
    """Read plan.json, every planned cell's run.json and the samples of the ok ones.

    A cell that is not stored gets the state `missing`; one with an unreadable file gets `corrupt`, and a warning names
    the file. Raises ValueError when plan.json, or a file of a packed campaign, cannot be read.
    """
    folder = Path(folder)
    campaign = undisturbed(folder, lambda: _load(folder))
    for run in campaign.runs.values():
        if run["state"] == CORRUPT:
            warnings.warn(run["reason"], stacklevel=2)
    remember(campaign.runs.values())
    return campaign


def _load(folder: Path) -> Campaign:
    plan, stored = read_json(folder / "plan.json"), read_runs(folder)
    runs = {cell: stored.get(cell, {"cell": cell, "state": "missing", "reason": "It has not run."})
            for cell in planned_cells(plan)}  # fmt: skip
    return Campaign(folder, plan, runs, read_samples(folder, runs))


def planned_cells(plan: dict) -> list[str]:
    """Every cell of the plan once, in the order of the panels."""
    return list(dict.fromkeys(cell for panel in plan["panels"] for point in panel["points"] for cell in point["cells"]))


def place_of(panel: dict, point: dict) -> dict:
    """Where a point is: its panel, its x, and its y where the panel has a second axis (None elsewhere)."""
    axes = {"x_name": panel["x_name"], "x": point["x"], "y_name": panel.get("y_name"), "y": point.get("y")}
    return {"experiment": panel["name"]} | axes


def coverage(campaign: Campaign) -> pd.DataFrame:
    """Every planned cell of every panel, twins too, with its state, the reason, and whether its output was checked."""
    rows = [
        place_of(panel, point)
        | {"cell": cell}
        | {name: campaign.runs[cell].get(name) for name in [*RUN_COLUMNS, "launch", "state", "reason"]}
        | {"correctness": correctness(campaign.runs[cell])}
        for panel in campaign.plan["panels"]
        for point in panel["points"]
        for cell in point["cells"]
    ]
    return pd.DataFrame(rows)


def device_of(run: dict) -> str:
    """The name of the described device that a cell was simulated on; "" for one that ran."""
    return run.get("device", {}).get("name", "")


def turn_of(run: dict) -> int:
    """How many forward passes of each kind a cell had in a round; one in samples of earlier code."""
    return run["schedule"].get("turn", 1)


def runs_of(campaign: Campaign, panel: dict | None = None) -> list[dict]:
    """run.json of the ok cells of a panel, or of all."""
    wanted = campaign.frames if panel is None else {cell for point in panel["points"] for cell in point["cells"]}
    return [campaign.runs[cell] for cell in campaign.frames if cell in wanted]


def regime_of(campaign: Campaign, panel: dict | None = None) -> str:
    """What all cells of a panel, or of all, were timed at: `encode`, `prefill` or `decode`; "" where they differ."""
    regimes = {run.get("regime", "encode") for run in runs_of(campaign, panel)}  # samples of earlier code have none
    return regimes.pop() if len(regimes) == 1 else ""


def simulated_on(campaign: Campaign, panel: dict | None = None) -> str:
    """The described device whose numbers a panel (or campaign) shows; "" where anything ran, or nothing did."""
    devices = {device_of(run) for run in runs_of(campaign, panel)}
    return devices.pop() if len(devices) == 1 else ""


def correctness(run: dict) -> str:
    """`passed`, `simulated` (outputs have no values), `failed` with the error, or `not checked`."""
    if run.get("source") == SIMULATED:
        return SIMULATED
    check = run.get("correctness")
    if check is None:
        return "not checked"
    agreement = check.get("agreement")
    if check["passed"] and agreement and not agreement["passed"]:
        check = agreement
    elif check["passed"]:
        return "passed"
    return f"failed (relative error {check['relative_error']:.2g}, {check['tolerance']:.2g} allowed)"
