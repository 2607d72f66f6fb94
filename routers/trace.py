"""Replay of recorded loads: how many tokens a real model's router sent to each expert, layer by layer."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from routers.drawn import CountedRouter
from routers.recorded import RecordedRouter
from routers.sampling import apportion

DEFAULT_PATH = Path(__file__).parents[1] / "results/reference/routing_traces.csv.gz"
COLUMNS = ("num_experts", "layer", "iteration", "tokens_per_expert")


def read_trace(path: Path, num_experts: int) -> dict[int, np.ndarray]:
    """Recorded loads by layer: int64 [I, E] in the order of the iterations.

    Raises ValueError, naming router.path, for a file that is no trace or lacks this number of experts.
    """
    rows = read_rows(path)
    recorded = sorted(set(rows.num_experts))
    if num_experts not in recorded:
        raise ValueError(
            f"router.path is {path}, which has no trace of num_experts={num_experts}; it has those of "
            + ", ".join(map(str, recorded))
        )
    chosen = rows.sort_values("iteration").query("num_experts == @num_experts")
    layers = {layer: chosen.query("layer == @layer") for layer in sorted(set(chosen.layer))}
    return {int(layer): _read_counts(path, num_experts, found) for layer, found in layers.items()}


def read_rows(path: Path) -> pd.DataFrame:
    """The file's rows in the columns COLUMNS; ValueError, naming router.path, where it has not these."""
    numbers: Any = dict.fromkeys(COLUMNS[:3], "int64")
    try:
        return pd.read_csv(path, usecols=list(COLUMNS), dtype=numbers | {COLUMNS[3]: str}, keep_default_na=False)
    except (OSError, EOFError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(
            f"router.path is {path}; it must be a csv (.gz) with the columns {', '.join(COLUMNS)}: {problem}"
        ) from error


def _read_counts(path: Path, num_experts: int, rows: pd.DataFrame) -> np.ndarray:
    try:
        tokens_IE = np.loadtxt(rows.tokens_per_expert.tolist(), dtype=np.int64, ndmin=2)
    except ValueError:
        tokens_IE = np.empty((0, 0))
    good = tokens_IE.shape == (len(rows), num_experts)
    if not good or tokens_IE.min() < 0 or tokens_IE.sum(axis=1).min() == 0:
        raise ValueError(
            f"router.path is {path}; tokens_per_expert must be {num_experts} numbers of tokens, not all 0, "
            f"in every row of num_experts={num_experts}"
        )
    return tokens_IE


class TraceRouter(RecordedRouter, CountedRouter):
    """The recorded loads of one layer and iteration, scaled to this rank's tokens; which tokens those are is drawn.

    The trace is a csv with the columns num_experts, layer, iteration, tokens_per_expert (numbers with spaces between),
    a row for one forward pass of one GPU. Rank r replays at iteration i the recorded iteration (i + r) mod I, so ranks
    differ and all layers of a rank stay together. Options are those of `RecordedRouter`.
    """

    default_path = DEFAULT_PATH
    read = staticmethod(read_trace)

    def counts(self, num_copies: int, *, layer: int, iteration: int) -> np.ndarray:
        tokens_IE = self.replayed(layer=layer, iteration=iteration)
        return apportion(tokens_IE[(iteration + self.rank) % len(tokens_IE)], num_copies)
