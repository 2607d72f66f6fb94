"""One grouped matrix multiplication per FFN half, whatever the number of experts."""

from collections.abc import Sequence

import torch
from torch.nn.functional import grouped_mm

from systems.engines.base import SortedEngine


class GroupedEngine(SortedEngine):
    """torch's `grouped_mm`: offsets stay on the device; fused on Hopper and later in bf16, a C++ loop elsewhere."""

    name = "grouped"

    def check(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> None:
        multiple = 16 // dtype.itemsize
        for width in widths:
            if width % multiple:
                raise ValueError(
                    f"engine=grouped needs matrix widths that are multiples of {multiple} in {dtype}, got {width}; "
                    "use engine=loop"
                )

    def ffn(self, x_ND: torch.Tensor, rows_e: torch.Tensor, wi: torch.Tensor, wo: torch.Tensor) -> torch.Tensor:
        ends_e = torch.cumsum(rows_e, dim=0, dtype=torch.int32)
        return grouped_mm(grouped_mm(x_ND, wi, offs=ends_e).relu_(), wo, offs=ends_e)
