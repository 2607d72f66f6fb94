"""What an engine is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch

from systems.engines.activations import ACTIVATIONS, Activation
from systems.permute import group_by_expert

# The type of each precision; tf32 is float32 whose products are rounded (`torch.set_float32_matmul_precision`).
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Copies(NamedTuple):
    """Which copies of the tokens go through which expert: copy n is of token n // top_k.

    order_N (int64, a permutation) sorts copies by expert: the first rows_e[0] (int64 counts) of them belong to expert
    0, and so on. Copies past sum(rows_e) in the order are padding; what becomes of them is undefined. weight_N
    (float32) is what each copy's result is multiplied with; None: 1.
    """

    order_N: torch.Tensor
    rows_e: torch.Tensor
    top_k: int = 1
    weight_N: torch.Tensor | None = None


class Engine(ABC):
    """A local expert FFN, y = act(x W_i + b_i) W_o + b_o, that reads tokens and writes results where they stand.

    Weights are wi_eDI, wo_eFD and, where experts have biases, bi_eI and bo_eD. Letters: M rows of tokens, N = M * top_k
    copies of them, e experts here, D d_model, F the width of the hidden layer here, I columns of W_i: F, or 2F of a
    gated activation.
    """

    name: ClassVar[str]

    def __init__(self, activation: Activation = ACTIVATIONS["relu"]) -> None:
        self.activation = activation

    def check(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> None:
        """Raise ValueError, in one sentence, if this machine or these matrix widths (D and F) cannot use the engine."""
        return

    def prepare(self, wi_eDI: torch.Tensor, wo_eFD: torch.Tensor, *biases: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Bring the weights into the engine's own layout, experts first, once, before anything is timed."""
        return wi_eDI, wo_eFD, *biases

    def group(self, expert_N: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(order_N, rows_e) as `group_by_expert` defines them."""
        return group_by_expert(expert_N, num_experts)

    @abstractmethod
    def __call__(self, x_MD: torch.Tensor, copies: Copies, *weights: torch.Tensor) -> torch.Tensor:
        """y_ND in the order of the copies, from prepared weights."""

    def of_sorted(self, x_ND: torch.Tensor, rows_e: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        """y_ND of rows that stand expert after expert already, rows_e of them for each."""
        return self(x_ND, Copies(torch.arange(len(x_ND), device=x_ND.device), rows_e), *weights)


class SortedEngine(Engine):
    """An engine that wants its rows sorted by expert: tokens are copied there and results back."""

    def __call__(self, x_MD: torch.Tensor, copies: Copies, *weights: torch.Tensor) -> torch.Tensor:
        order_N, rows_e, top_k, weight_N = copies
        y_ND = self.ffn(x_MD[order_N if top_k == 1 else order_N // top_k], rows_e, *weights)
        if weight_N is not None:
            y_ND = y_ND * weight_N[order_N].to(y_ND.dtype).unsqueeze(1)
        return torch.empty_like(y_ND).index_copy_(0, order_N, y_ND)

    def of_sorted(self, x_ND: torch.Tensor, rows_e: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return self.ffn(x_ND, rows_e, *weights)

    @abstractmethod
    def ffn(self, x_ND: torch.Tensor, rows_e: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        """y_ND of rows that stand expert after expert."""

    def _activated(self, h_NI: torch.Tensor, rows_e: torch.Tensor, bi_eI: torch.Tensor | None = None) -> torch.Tensor:
        """h_NF from the products with W_i."""
        return self.activation.function(with_bias(h_NI, rows_e, bi_eI))


def with_bias(y_NX: torch.Tensor, rows_e: torch.Tensor, bias_eX: torch.Tensor | None = None) -> torch.Tensor:
    """Adds in place to each row, expert after expert, its expert's bias; rows past sum(rows_e) get any."""
    if bias_eX is None:
        return y_NX
    places_N = torch.arange(len(y_NX), device=y_NX.device)
    expert_N = torch.searchsorted(rows_e.cumsum(0), places_N, right=True)
    return y_NX.add_(bias_eX[expert_N.clamp(max=len(rows_e) - 1)])
