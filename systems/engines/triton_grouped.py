"""Our own grouped matrix multiplication: two kernel launches per FFN, whatever the routing."""

from collections.abc import Sequence
from importlib.util import find_spec

import torch

from systems.engines.activations import ACTIVATIONS
from systems.engines.base import Copies, Engine


class TritonGroupedEngine(Engine):
    """A Triton kernel per FFN half, any widths, graph-capturable. The first gathers its rows and applies the
    activation, the second scatters them, so nothing of the size of the batch is copied in between.

    The launch covers the most row tiles that any routing needs, and each tile finds its expert on the device: the host
    never reads the counts. Tiles are tuned on the first call with each shape, type and power of two of rows per expert,
    and kept in Triton's cache. fp32 follows `torch.set_float32_matmul_precision`: IEEE if highest, else TF32.
    """

    name = "triton"

    def check(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> None:
        if device.type != "cuda":
            raise ValueError(
                f"engine=triton runs a CUDA kernel and this rank is on {device.type}; use engine=cpu or engine=loop"
            )
        if find_spec("triton") is None:
            raise ValueError("engine=triton needs Triton, which comes with torch's CUDA builds: pip install triton")

    def prepare(self, wi_eDI: torch.Tensor, wo_eFD: torch.Tensor, *biases: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(wi_eID, wo_eDF) and the biases: tensor cores want the summed dimension of fp32 operands innermost."""
        return wi_eDI.transpose(1, 2).contiguous(), wo_eFD.transpose(1, 2).contiguous(), *biases

    def __call__(self, x_MD: torch.Tensor, copies: Copies, *weights: torch.Tensor) -> torch.Tensor:
        order_N, rows_e, top_k, weight_N = copies
        wi, wo, bi, bo = (*weights, None, None)[:4]
        first = (wi, bi, None, top_k, self.activation.name)
        hidden_NF = torch.ops.moe.grouped_gemm(x_MD.contiguous(), order_N, rows_e, *first)
        return torch.ops.moe.grouped_gemm(hidden_NF, order_N, rows_e, wo, bo, weight_N, 0, "")


def _grouped_gemm(
    x: torch.Tensor,
    order_N: torch.Tensor,
    rows_e: torch.Tensor,
    w_eOK: torch.Tensor,
    bias_eO: torch.Tensor | None,
    weight_N: torch.Tensor | None,
    divide_by: int,
    activation: str,
) -> torch.Tensor:
    """Rows order_N // divide_by of x through W and the activation; with 0 rows in sequence, weighted, to order_N."""
    from systems.engines.triton_kernels import LEAST_IDS, launcher

    y = _grouped_gemm_shape(x, order_N, rows_e, w_eOK, bias_eO, weight_N, divide_by, activation)
    num_rows, width_out, (num_experts, _, width_in) = len(order_N), y.shape[1], w_eOK.shape
    if not (num_rows and num_experts):
        return y
    rows_per_expert = 1 << (max(1, num_rows // num_experts) - 1).bit_length()
    launcher(rows_per_expert, x.element_size())[  # pyright: ignore[reportIndexIssue]
        lambda tile: (-(-width_out // tile["BLOCK_O"]), -(-num_rows // tile["BLOCK_M"]) + num_experts)
    ](
        x,
        order_N,
        w_eOK,
        y,
        rows_e,
        rows_e if weight_N is None else weight_N,  # a pointer in any case
        rows_e if bias_eO is None else bias_eO,
        num_experts,
        width_out,
        width_in,
        rows_per_expert,
        GATHER=divide_by,
        WEIGHTED=weight_N is not None,
        BIASED=bias_eO is not None,
        ACTIVATION=activation,
        PRECISION="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        NUM_IDS=max(LEAST_IDS, 1 << (num_experts - 1).bit_length()),
    )
    return y


def _grouped_gemm_shape(x, order_N, rows_e, w_eOK, bias_eO, weight_N, divide_by, activation) -> torch.Tensor:
    gated = activation and ACTIVATIONS[activation].gated
    return x.new_empty(len(order_N), w_eOK.shape[1] // 2 if gated else w_eOK.shape[1])


# An operation of torch's, so that ranks without a GPU can say how large its result is and how long it takes.
LIBRARY = torch.library.Library("moe", "DEF")
LIBRARY.define(
    "grouped_gemm(Tensor x, Tensor order, Tensor rows, Tensor weights, Tensor? bias, Tensor? gates, int divide_by, "
    "str activation) -> Tensor"
)
LIBRARY.impl("grouped_gemm", _grouped_gemm, "CompositeExplicitAutograd")
LIBRARY.impl("grouped_gemm", _grouped_gemm_shape, "Meta")
