"""One pair of matrix multiplications per expert."""

import torch

from systems.engines.activations import expert_ffn
from systems.engines.base import SortedEngine


class LoopEngine(SortedEngine):
    """Experts one after another; the host needs the counts, which on a GPU is a synchronisation."""

    name = "loop"

    def ffn(self, x_ND: torch.Tensor, rows_e: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        y_ND = torch.empty_like(x_ND)
        start = 0
        for expert, rows in enumerate(rows_e.tolist()):
            if rows:
                own = slice(start, start + rows)
                expert_ffn(x_ND[own], self.activation, *(weight[expert] for weight in weights), out=y_ND[own])
            start += rows
        return y_ND
