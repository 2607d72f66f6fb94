"""Our own grouped matrix multiplication: two kernel launches per FFN, whatever the routing."""

from collections.abc import Sequence
from importlib.util import find_spec

import torch

from systems.engines.base import Engine


class TritonGroupedEngine(Engine):
    """A Triton kernel per FFN half, ReLU fused into the first, any widths, no padded copies; graph-capturable.

    The launch covers the most row tiles that any routing needs, and each tile finds its expert on the device: the host
    never reads the counts. fp32 follows `torch.set_float32_matmul_precision`: IEEE if highest, else TF32.
    """

    name = "triton"

    def check(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> None:
        if device.type != "cuda":
            raise ValueError(
                f"engine=triton runs a CUDA kernel and this rank is on {device.type}; use engine=grouped or engine=loop"
            )
        if find_spec("triton") is None:
            raise ValueError("engine=triton needs Triton, which comes with torch's CUDA builds: pip install triton")

    def prepare(self, wi_eDF: torch.Tensor, wo_eFD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(wi_eFD, wo_eDF): tensor cores want the summed dimension of fp32 operands innermost."""
        return wi_eDF.transpose(1, 2).contiguous(), wo_eFD.transpose(1, 2).contiguous()

    def __call__(self, x_RD: torch.Tensor, rows_e: torch.Tensor, wi: torch.Tensor, wo: torch.Tensor) -> torch.Tensor:
        hidden_RF = _grouped_gemm(x_RD.contiguous(), rows_e, wi, relu=True)
        return _grouped_gemm(hidden_RF, rows_e, wo, relu=False)


def tile_shape(rows_per_expert: int, itemsize: int) -> dict[str, int]:
    """Tile and launch sizes for experts of that many rows on average; a step over K is 128 bytes, a cache line."""
    block_m = min(128, max(16, 1 << (rows_per_expert - 1).bit_length()))
    tile = {"BLOCK_M": block_m, "BLOCK_N": 128, "BLOCK_K": 128 // itemsize}
    return {**tile, "num_warps": 8 if block_m == 128 else 4, "num_stages": 3}


def _grouped_gemm(x_RK: torch.Tensor, rows_e: torch.Tensor, w_eNK: torch.Tensor, *, relu: bool) -> torch.Tensor:
    from systems.engines.triton_kernels import grouped_gemm

    (num_rows, width_in), (num_experts, width_out, _) = x_RK.shape, w_eNK.shape
    tile = tile_shape(num_rows // num_experts, x_RK.element_size())
    most_row_tiles = -(-num_rows // tile["BLOCK_M"]) + num_experts
    y_RN = x_RK.new_empty(num_rows, width_out)
    grid = (-(-width_out // tile["BLOCK_N"]), most_row_tiles)
    grouped_gemm[grid](  # pyright: ignore[reportIndexIssue]
        x_RK,
        w_eNK,
        y_RN,
        rows_e,
        num_experts,
        width_out,
        width_in,
        RELU=relu,
        PRECISION="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        NUM_IDS=1 << (num_experts - 1).bit_length(),
        **tile,
    )
    return y_RN
