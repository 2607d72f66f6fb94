"""What an engine is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch


class Engine(ABC):
    """A local expert FFN: y = relu(x W_i) W_o for rows sorted by expert.

    Letters: R rows, e experts here, D d_model, F the width of the hidden layer here.
    """

    name: ClassVar[str]

    def check(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> None:
        """Raise ValueError, in one sentence, if this machine or these matrix widths (D and F) cannot use the engine."""
        return

    def prepare(self, wi_eDF: torch.Tensor, wo_eFD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring the weights into the engine's own layout, once, before anything is timed."""
        return wi_eDF, wo_eFD

    @abstractmethod
    def __call__(self, x_RD: torch.Tensor, rows_e: torch.Tensor, wi: torch.Tensor, wo: torch.Tensor) -> torch.Tensor:
        """y_RD, from prepared weights: the first rows_e[0] rows (int64 counts) belong to expert 0, and so on.

        Rows past sum(rows_e) are padding; what they become is undefined.
        """
