"""One grouped matrix multiplication per FFN half, whatever the number of experts."""

from collections.abc import Sequence

import torch
from torch.nn.functional import grouped_mm

from systems.engines.base import SortedEngine, with_bias


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

    def ffn(self, x_ND: torch.Tensor, rows_e: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        wi_eDI, wo_eFD, *biases = weights
        ends_e = torch.cumsum(rows_e, dim=0, dtype=torch.int32)
        h_NF = self._activated(grouped_mm(x_ND, wi_eDI, offs=ends_e), rows_e, *biases[:1])
        return with_bias(grouped_mm(h_NF, wo_eFD, offs=ends_e), rows_e, *biases[1:])
