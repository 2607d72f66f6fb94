"""Published numbers, and which point of a campaign each stands beside."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.frames import select

FOLDER = Path(__file__).parents[3] / "results" / "reference"
# What the paper holds constant while the other factor varies.
PAPER_POINT = {"num_experts": 128, "batch_size": 250}
COLUMNS = [
    *["experiment", "x_name", "x", "published_x", "figure", "system", "engine", "baseline"],
    *["published", "recomputed_ttft"],
]


@dataclass(frozen=True)
class Reference:
    """The points of the paper's Figures 3 and 4, the runs behind them, and the learned router's recorded loads."""

    figures: pd.DataFrame
    runs: pd.DataFrame
    traces: pd.DataFrame = field(default_factory=pd.DataFrame)


def load_reference() -> Reference:
    """Read results/reference."""
    names = ("paper_figures.csv", "paper_runs.csv", "routing_traces.csv.gz")
    return Reference(*(pd.read_csv(FOLDER / name) for name in names))


def published_points(plan: dict, reference: Reference) -> pd.DataFrame:
    """One row for each published value that a point of the plan stands for (`published_x`), over the same baseline.

    A panel stands for the figures that it names in `published`. Empty when there is none.
    """
    rows = [
        {"experiment": panel["name"], "x_name": panel["x_name"], "x": point["x"], "published_x": row["x"]}
        | {name: row[name] for name in ("figure", "system", "engine", "baseline")}
        | {"published": row["value"], "recomputed_ttft": recomputed_ttft(reference.runs, row)}
        for panel in plan["panels"]
        for row in select(reference.figures, x_name=panel["x_name"]).to_dict("records")
        if row["figure"] in panel["published"]
        for point in panel["points"]
        if point["published_x"] == row["x"] and plan.get("baseline") == row["baseline"]
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def runs_behind(runs: pd.DataFrame, row: dict) -> tuple[Any, Any]:
    """The run of the baseline and that of the system behind a point of a figure."""
    here = select(runs, **(PAPER_POINT | {row["x_name"]: row["x"]}))
    baseline, system = select(here, system=row["baseline"]), select(here, system=row["system"], engine=row["engine"])
    return baseline.iloc[0], system.iloc[0]


def recomputed_ttft(runs: pd.DataFrame, row: dict) -> float:
    """Ratio of full-forward medians (slowest rank) of the two runs behind a published point."""
    baseline, system = runs_behind(runs, row)
    return float(baseline["ttft_max_rank_median_ms"]) / float(system["ttft_max_rank_median_ms"])


def recomputed_layers(runs: pd.DataFrame, row: dict) -> dict[int, float]:
    """Ratio of the medians of each MoE layer (rank 0) of the two runs, by encoder block."""
    baseline, system = runs_behind(runs, row)
    names = [name for name in runs.columns if name.startswith("layer")]
    layers = [int(name.removeprefix("layer").removesuffix("_median_ms")) for name in names]
    return dict(zip(layers, np.array(baseline[names], float) / np.array(system[names], float), strict=True))


def layer_ms(runs: pd.DataFrame, system: str, engine: str, x_name: str, x: float) -> float:
    """The authors' time of an MoE layer, the median of its layers' medians (rank 0); nan without such a run."""
    here = select(runs, system=system, engine=engine, **(PAPER_POINT | {x_name: x}))
    return float(np.nanmedian(here.filter(regex="^layer").to_numpy(dtype=float))) if len(here) else np.nan


def recomputed_layer(runs: pd.DataFrame, row: dict) -> float:
    """The paper's statistic, from medians of rank 0: the figures' own means hold outliers and are 2 to 6 % lower."""
    return float(np.mean(list(recomputed_layers(runs, row).values())))


def recorded_loads(traces: pd.DataFrame, num_experts: int) -> tuple[np.ndarray, list[int]]:
    """Tokens per expert of the learned router, [I, L, E], and the encoder blocks; empty without such a trace."""
    here = select(traces, num_experts=num_experts).sort_values(["iteration", "layer"])
    layers = sorted(here["layer"].unique())
    tokens = [list(map(int, counts.split())) for counts in here["tokens_per_expert"]]
    return np.reshape(tokens, (-1, max(1, len(layers)), num_experts)), layers


# The paper's method as its authors wrote it, whatever its engine, what is nearest to their program first.
AS_PUBLISHED = ["moeshard_authors", "moeshard_published"]


def same_series(frame: pd.DataFrame, system: str, engine: str) -> pd.DataFrame:
    """Rows of ours that a published series stands beside: its loop engine our loop, its MegaBlocks any other.

    The method as published stands beside the latter too: its loops are of the host.
    """
    method = frame["system"].isin([system, f"{system}_no_megablocks"])
    as_published = frame["system"].isin(AS_PUBLISHED if system == "moeshard" and engine != "loop" else [])
    return frame.loc[as_published | (method & ((frame["engine"] == "loop") == (engine == "loop")))]
