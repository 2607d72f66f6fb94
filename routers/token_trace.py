"""Replay of recorded tokens: which experts a real model's router chose for each token of a text, layer after layer.

Letters in names: L recorded layers, T recorded tokens, K experts of a token that are kept, S sequences.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from routers.recorded import RecordedRouter

DEFAULT_PATH = Path(__file__).parents[1] / "results/reference/token_trace.npz"


@dataclass(frozen=True)
class TokenTrace:
    """A text through a model.

    expert_LTK: int16, the K best experts of each token, best first. logits_LTK: float16, their router scores;
    empty where who recorded them had none.
    start_S: int64, the first token of each sequence. block_L: int64, the block of each layer. num_experts: a
    number. source: where it is from, in words.
    """

    expert_LTK: np.ndarray
    logits_LTK: np.ndarray
    start_S: np.ndarray
    block_L: np.ndarray
    num_experts: np.ndarray
    source: np.ndarray

    def write(self, path: Path) -> None:
        """The same trace gives the same bytes."""
        np.savez_compressed(path, **vars(self))

    @classmethod
    def read(cls, path: Path) -> "TokenTrace":
        """ValueError, naming router.path, for a file that is none."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                trace = cls(**arrays)
        except (OSError, EOFError, BadZipFile, TypeError, ValueError) as error:
            problem = " ".join(str(error).split())
            raise ValueError(
                f"router.path is {path}, which scripts.record_token_trace did not write: {problem}"
            ) from error
        trace._check(path)
        return trace

    def _check(self, path: Path) -> None:
        layers, tokens = self.expert_LTK.shape[:2] if self.expert_LTK.ndim == 3 else (0, 0)
        if not layers * tokens or len(self.block_L) != layers:
            raise ValueError(f"router.path is {path}; it must have tokens, and a block for each layer")
        if self.expert_LTK.min() < 0 or self.expert_LTK.max() >= self.num_experts:
            raise ValueError(f"router.path is {path}; its experts must be 0 to {self.num_experts - 1}")


class TokenTraceRouter(RecordedRouter):
    """The best experts of recorded tokens, the same tokens in every layer of a forward pass.

    A rank takes consecutive tokens from a place drawn by (seed, iteration, rank), the first one again after the last.
    scripts/record_token_trace.py makes traces. Options are those of `RecordedRouter`; blocks that share a recorded
    layer route a token alike.
    """

    default_path = DEFAULT_PATH

    def __init__(self, **workload: Any) -> None:
        super().__init__(**workload)
        recorded = next(iter(self._parts.values()))[0].shape[1]
        if self.top_k > recorded:
            raise ValueError(f"model.top_k is {self.top_k} and the trace has {recorded} expert(s) of each token")

    @staticmethod
    def read(path: Path, num_experts: int) -> dict[int, np.ndarray]:
        trace = TokenTrace.read(path)
        if num_experts != trace.num_experts:
            raise ValueError(f"router.path is {path}, a trace of num_experts={trace.num_experts}, not {num_experts}")
        return dict(zip(trace.block_L.tolist(), trace.expert_LTK.astype(np.int64), strict=True))

    def draw(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        expert_TK = self.replayed(layer=layer, iteration=iteration)
        # One generator for all layers: a token's experts stay together.
        first = self.generator(layer=0, iteration=iteration).integers(len(expert_TK))
        return expert_TK[(first + np.arange(num_tokens)) % len(expert_TK), : self.top_k]

    def intended(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        expert_TK = self.draw(num_tokens, layer=layer, iteration=iteration)
        return np.bincount(expert_TK.flatten(), minlength=self.num_experts).astype(np.float64)
