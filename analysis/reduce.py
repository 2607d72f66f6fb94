"""One cell's raw rows reduced over ranks, per iteration: the slowest rank decides, its fellows are kept beside it.

Shape letters: I iterations, L MoE layers (1 for whole-pass metrics), G ranks.
"""

import numpy as np
import pandas as pd

from analysis.frames import select

KEYS = ["iteration", "layer", "rank"]


def reduce_cell(samples: pd.DataFrame, world_size: int) -> dict[str, np.ndarray]:
    """Arrays [I, L] by metric from the end-to-end pass of one cell; a metric that was not recorded is absent.

    Raises ValueError when sources are mixed, or when an iteration lacks the row of a rank.
    """
    samples = select(samples, phase="measure")
    single(samples, "source")
    cubes = {str(name): cube(rows, world_size) for name, rows in samples.groupby("metric")}
    reduced = {}
    if "ttft_ms" in cubes:
        reduced["ttft_ms"] = cubes["ttft_ms"].max(axis=-1)
    if "layer_moe_ms" in cubes:
        reduced |= reduce_layers(cubes["layer_moe_ms"])
    return reduced | reduce_counts(cubes)


def reduce_layers(layer_ms_ILG: np.ndarray) -> dict[str, np.ndarray]:
    """Slowest, fastest and mean rank; the mean serves only the paper's statistic."""
    slowest_IL, fastest_IL = layer_ms_ILG.max(axis=-1), layer_ms_ILG.min(axis=-1)
    return {
        "layer_moe_ms": slowest_IL,
        "layer_moe_min_rank_ms": fastest_IL,
        "layer_moe_spread_ms": slowest_IL - fastest_IL,
        "layer_moe_mean_rank_ms": layer_ms_ILG.mean(axis=-1),
    }


def reduce_counts(cubes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Padding per forward pass, imbalance per layer, tokens dropped per forward pass."""
    reduced = {}
    computed_ILG, useful_ILG = cubes.get("rows_computed"), cubes.get("rows_useful")
    if computed_ILG is not None:
        reduced["imbalance"] = computed_ILG.max(axis=-1) / computed_ILG.mean(axis=-1)
    if computed_ILG is not None and useful_ILG is not None:
        reduced["padding"] = per_pass(computed_ILG) / per_pass(useful_ILG)
    if "dropped" in cubes:
        reduced["dropped"] = per_pass(cubes["dropped"])
    return reduced


def per_pass(counts_ILG: np.ndarray) -> np.ndarray:
    """Counts summed over layers and ranks: [I, 1]."""
    return counts_ILG.sum(axis=(1, 2))[:, None]


def cube(rows: pd.DataFrame, world_size: int) -> np.ndarray:
    """One metric of one cell as [I, L, G]; every rank must have a row for every iteration and layer."""
    rows = rows.assign(layer=rows["layer"].astype("float64").fillna(-1)).sort_values(KEYS)
    num_iterations, num_layers = len(rows["iteration"].unique()), len(rows["layer"].unique())
    expected = num_iterations * num_layers * world_size
    if len(rows) != expected or rows.duplicated(KEYS).any():
        raise ValueError(
            f"Cell {rows['cell'].iloc[0]} has {len(rows)} rows of {rows['metric'].iloc[0]}; "
            f"{num_iterations} iterations x {num_layers} layers x {world_size} ranks make {expected}, each once."
        )
    return np.reshape(rows["value"].to_numpy(), (num_iterations, num_layers, world_size))


def single(rows: pd.DataFrame, column: str) -> object:
    """The one value of a column that a statistic must not mix."""
    values = rows[column].unique()
    if len(values) > 1:
        raise ValueError(f"One statistic cannot mix {column} {', '.join(sorted(map(str, values)))}.")
    return values[0] if len(values) else None
