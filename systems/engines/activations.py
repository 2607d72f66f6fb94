"""What stands between an expert's two products: y = act(x W_i + b_i) W_o + b_o.

A gated activation takes W_i = [W_gate | W_up], twice as wide as the hidden layer.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import gelu, silu


class Activation(NamedTuple):
    """function: of the product with W_i, which it may overwrite, [N, F], or [N, 2F] where gated; gives [N, F]."""

    name: str
    gated: bool
    function: Callable[[torch.Tensor], torch.Tensor]

    def in_width(self, width: int) -> int:
        """Columns of W_i for a hidden layer of this width."""
        return 2 * width if self.gated else width

    def units(self, wi_XI: torch.Tensor, hidden: slice) -> torch.Tensor:
        """The columns of W_i, or the numbers of b_i, of some hidden units: of a gated one, of both halves."""
        if not self.gated:
            return wi_XI[..., hidden]
        return torch.cat([half[..., hidden] for half in wi_XI.chunk(2, -1)], -1)


ALPHA, LIMIT = 1.702, 7.0  # of gpt-oss's SwiGLU


def _swiglu(h_N2F: torch.Tensor) -> torch.Tensor:
    gate_NF, up_NF = h_N2F.chunk(2, -1)
    return silu(gate_NF).mul_(up_NF)


def _geglu(h_N2F: torch.Tensor) -> torch.Tensor:
    gate_NF, up_NF = h_N2F.chunk(2, -1)
    return gelu(gate_NF, approximate="tanh").mul_(up_NF)


def _clamped_swiglu(h_N2F: torch.Tensor) -> torch.Tensor:
    """gpt-oss: gate sigmoid(alpha gate) (up + 1), the gate at most LIMIT and up within +-LIMIT."""
    gate_NF, up_NF = h_N2F.chunk(2, -1)
    gate_NF, up_NF = gate_NF.clamp(max=LIMIT), up_NF.clamp(-LIMIT, LIMIT)
    return torch.sigmoid(ALPHA * gate_NF).mul_(gate_NF).mul_(up_NF + 1)


ACTIVATIONS = {
    one.name: one
    for one in (
        Activation("relu", gated=False, function=torch.relu_),
        Activation("swiglu", gated=True, function=_swiglu),
        Activation("geglu", gated=True, function=_geglu),
        Activation("clamped_swiglu", gated=True, function=_clamped_swiglu),
    )
}


def expert_ffn(
    x_RD: torch.Tensor,
    activation: Activation,
    wi_DI: torch.Tensor,
    wo_FD: torch.Tensor,
    bi_I: torch.Tensor | None = None,
    bo_D: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """One expert by plain products, as `out` where it is given: what every engine computes."""
    h_RI = torch.mm(x_RD, wi_DI) if bi_I is None else torch.addmm(bi_I, x_RD, wi_DI)
    h_RF = activation.function(h_RI)
    return torch.mm(h_RF, wo_FD, out=out) if bo_D is None else torch.addmm(bo_D, h_RF, wo_FD, out=out)


def batched_ffn(
    x_eRD: torch.Tensor,
    activation: Activation,
    wi_eDI: torch.Tensor,
    wo_eFD: torch.Tensor,
    bi_eI: torch.Tensor | None = None,
    bo_eD: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same for as many rows of every expert."""
    h_eRI = torch.bmm(x_eRD, wi_eDI) if bi_eI is None else torch.baddbmm(bi_eI.unsqueeze(1), x_eRD, wi_eDI)
    h_eRF = activation.function(h_eRI)
    if bo_eD is None:
        return torch.bmm(h_eRF, wo_eFD, out=out)
    return torch.baddbmm(bo_eD.unsqueeze(1), h_eRF, wo_eFD, out=out)
