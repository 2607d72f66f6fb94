"""Replay of recorded loads: how many tokens a real model's router sent to each expert, layer by layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from routers.drawn import PROFILE_FROM, CountedRouter
from routers.options import record_parts

DEFAULT_PATH = Path(__file__).parents[1] / "results/reference/routing_traces.csv.gz"
COLUMNS = ("num_experts", "layer", "iteration", "tokens_per_expert")


def apportion(weights_E: np.ndarray, total: int) -> np.ndarray:
    """int64 [E] with sum `total`, in proportion to the int64 weights, each less than 1 from its quota.

    The largest-remainder method in whole numbers; of equal remainders the first wins.
    """
    floor_E, remainder_E = np.divmod(weights_E * total, weights_E.sum())
    winners = np.argsort(-remainder_E, kind="stable")[: total - floor_E.sum()]
    floor_E[winners] += 1
    return floor_E


def spread(num_blocks: int, num_layers: int) -> list[int]:
    """The recorded layer of each MoE block: evenly spaced, the first and the last among them where there are two."""
    return [round(block * (num_layers - 1) / max(num_blocks - 1, 1)) for block in range(num_blocks)]


def layers_of(moe_blocks: Sequence[int], recorded: Sequence[int], layers: Sequence[int] | None) -> dict[int, int]:
    """The recorded layer of each MoE block: `layers` in order, or if None evenly spaced ones.

    Raises ValueError, naming router.layers, unless there is a recorded one for every block.
    """
    if layers is None:
        layers = [recorded[index] for index in spread(len(moe_blocks), len(recorded))]
    if len(layers) != len(moe_blocks) or not set(layers) <= set(recorded):
        raise ValueError(
            f"router.layers is {list(layers)}; it must name, for each of the model's {len(moe_blocks)} MoE blocks, "
            f"one of the recorded layers {', '.join(map(str, recorded))}"
        )
    return dict(zip(moe_blocks, layers, strict=True))


def read_trace(path: Path, num_experts: int) -> dict[int, np.ndarray]:
    """Recorded loads by layer: int64 [I, E] in the order of the iterations.

    Raises ValueError, naming router.path, for a file that is no trace or lacks this number of experts.
    """
    rows = _read_rows(path)
    recorded = sorted(set(rows.num_experts))
    if num_experts not in recorded:
        raise ValueError(
            f"router.path is {path}, which has no trace of num_experts={num_experts}; it has those of "
            + ", ".join(map(str, recorded))
        )
    chosen = rows.sort_values("iteration").query("num_experts == @num_experts")
    layers = {layer: chosen.query("layer == @layer") for layer in sorted(set(chosen.layer))}
    return {int(layer): _read_counts(path, num_experts, found) for layer, found in layers.items()}


def _read_rows(path: Path) -> pd.DataFrame:
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


class TraceRouter(CountedRouter):
    """The recorded loads of one layer and iteration, scaled to this rank's tokens; which tokens those are is drawn.

    The trace is a csv with the columns num_experts, layer, iteration, tokens_per_expert (numbers with spaces between),
    a row for one forward pass of one GPU; `path` None is the one that comes with this repository. Rank r replays at
    iteration i the recorded iteration (i + r) mod I, so ranks differ and all layers of a rank stay together. `layers`
    names the recorded layer of each MoE block; None takes them evenly spaced from the first to the last. The last
    `held_out` share of the iterations is kept for profiles; where that is none they come from all.
    """

    def __init__(
        self,
        *,
        num_experts: int,
        moe_blocks: Sequence[int],
        path: str | None = None,
        layers: Sequence[int] | None = None,
        held_out: float = 0.25,
        **workload: Any,
    ) -> None:
        super().__init__(num_experts=num_experts, moe_blocks=moe_blocks, **workload)
        trace = read_trace(self.trace_file(path), num_experts)
        chosen = layers_of(moe_blocks, list(trace), layers)
        self._measured: dict[int, np.ndarray] = {}  # int64 [I, E] by block
        self._held_out: dict[int, np.ndarray] = {}
        for block, layer in chosen.items():
            measured, profiled = record_parts(held_out, len(trace[layer]))
            self._measured[block], self._held_out[block] = trace[layer][measured], trace[layer][profiled]

    @staticmethod
    def trace_file(path: str | None = None, **unused: object) -> Path:
        """The file that decides the routing; its content is part of what a cell is."""
        return DEFAULT_PATH if path is None else Path(path)

    def counts(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        tokens_IE = (self._held_out if iteration >= PROFILE_FROM else self._measured)[layer]
        return apportion(tokens_IE[(iteration + self.rank) % len(tokens_IE)], num_tokens)
