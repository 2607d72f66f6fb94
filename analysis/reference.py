"""Published numbers, and which point of a campaign each stands beside."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.frames import select

FOLDER = Path(__file__).parent.parent / "results" / "reference"
# What the paper holds constant while the other factor varies.
PAPER_POINT = {"num_experts": 128, "batch_size": 250}
COLUMNS = [
    *["experiment", "x_name", "x", "published_x", "figure", "system", "engine", "baseline"],
    *["published", "recomputed_ttft"],
]


@dataclass(frozen=True)
class Reference:
    """The points of the paper's Figures 3 and 4, and the runs behind them."""

    figures: pd.DataFrame
    runs: pd.DataFrame


def load_reference(folder: Path = FOLDER) -> Reference:
    return Reference(pd.read_csv(folder / "paper_figures.csv"), pd.read_csv(folder / "paper_runs.csv"))


def published_points(plan: dict, reference: Reference) -> pd.DataFrame:
    """One row for each published value that a point of the plan stands for (`published_x`), over the same baseline.

    Empty when there is none.
    """
    rows = [
        {"experiment": panel["name"], "x_name": panel["x_name"], "x": point["x"], "published_x": row["x"]}
        | {name: row[name] for name in ("figure", "system", "engine", "baseline")}
        | {"published": row["value"], "recomputed_ttft": recomputed_ttft(reference.runs, row)}
        for panel in plan["panels"]
        for row in select(reference.figures, x_name=panel["x_name"]).to_dict("records")
        for point in panel["points"]
        if point["published_x"] == row["x"] and plan.get("baseline") == row["baseline"]
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def recomputed_ttft(runs: pd.DataFrame, row: dict) -> float:
    """Ratio of full-forward medians (slowest rank) of the two runs behind a published point."""
    here = select(runs, **(PAPER_POINT | {row["x_name"]: row["x"]}))
    baseline = select(here, system=row["baseline"])["ttft_max_rank_median_ms"].item()
    return baseline / select(here, system=row["system"], engine=row["engine"])["ttft_max_rank_median_ms"].item()


def same_series(frame: pd.DataFrame, system: str, engine: str) -> pd.DataFrame:
    """Rows of ours that a published series stands beside: its loop engine our loop, its MegaBlocks any other."""
    method = frame["system"].isin([system, f"{system}_no_megablocks"])
    return frame.loc[method & ((frame["engine"] == "loop") == (engine == "loop"))]
