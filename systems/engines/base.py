"""What an engine is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch

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
    """A local expert FFN, y = relu(x W_i) W_o, that reads tokens and writes results where they stand.

    Letters: M rows of tokens, N = M * top_k copies of them, e experts here, D d_model, F the width of the hidden layer
    here.
    """

    name: ClassVar[str]

    def check(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> None:
        """Raise ValueError, in one sentence, if this machine or these matrix widths (D and F) cannot use the engine."""
        return

    def prepare(self, wi_eDF: torch.Tensor, wo_eFD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring the weights into the engine's own layout, experts first, once, before anything is timed."""
        return wi_eDF, wo_eFD

    def group(self, expert_N: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(order_N, rows_e) as `group_by_expert` defines them."""
        return group_by_expert(expert_N, num_experts)

    @abstractmethod
    def __call__(self, x_MD: torch.Tensor, copies: Copies, wi: torch.Tensor, wo: torch.Tensor) -> torch.Tensor:
        """y_ND in the order of the copies, from prepared weights."""


class SortedEngine(Engine):
    """An engine that wants its rows sorted by expert: tokens are copied there and results back."""

    def __call__(self, x_MD: torch.Tensor, copies: Copies, wi: torch.Tensor, wo: torch.Tensor) -> torch.Tensor:
        order_N, rows_e, top_k, weight_N = copies
        y_ND = self.ffn(x_MD[order_N if top_k == 1 else order_N // top_k], rows_e, wi, wo)
        if weight_N is not None:
            y_ND = y_ND * weight_N[order_N].to(y_ND.dtype).unsqueeze(1)
        return torch.empty_like(y_ND).index_copy_(0, order_N, y_ND)

    @abstractmethod
    def ffn(self, x_ND: torch.Tensor, rows_e: torch.Tensor, wi: torch.Tensor, wo: torch.Tensor) -> torch.Tensor:
        """y_ND of rows that stand expert after expert."""
