"""Experts in fewer bits: weights and rows rounded as they come, with a scale for each row and each column.

bf16 rounds numbers of more bits and has no scales; fp8 is e4m3, scaled to its largest number. Letters as in
`systems.engines.base`, and K, O the widths of a product.
"""

from typing import NamedTuple

import torch

from systems.engines.activations import Activation
from systems.engines.base import with_bias

LARGEST = {"fp8": 448.0}  # the numbers that a row is scaled to
TYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
LOW = tuple(TYPES)


class Rounded(NamedTuple):
    """Numbers in few bits, and what each row, or column of each expert, is to be multiplied with."""

    numbers: torch.Tensor
    scale: torch.Tensor


def rounded(x: torch.Tensor, precision: str, dim: int) -> Rounded:
    """x in this precision; numbers that differ in `dim` alone share a scale."""
    if precision not in LARGEST:
        return Rounded(x.to(TYPES[precision]), torch.ones_like(x.select(dim, 0), dtype=torch.float32))
    largest = torch.linalg.vector_norm(x, torch.inf, dim, keepdim=True)  # reads x once and writes no copy of it
    scale = torch.where(largest > 0, largest / LARGEST[precision], 1.0)
    return Rounded((x / scale).to(TYPES[precision]), scale.float().squeeze(dim))


@torch.library.custom_op("moe::scaled_grouped_mm", mutates_args=())
def scaled_grouped_mm(
    x_NK: torch.Tensor,
    scale_N: torch.Tensor,
    w_eKO: torch.Tensor,
    scale_eO: torch.Tensor,
    rows_e: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """[N, O] of this type: rows that stand expert after expert times their expert's matrix, both rounded.

    On a CPU, which has no products in fp8, of the numbers that the bits stand for: right, and not fast.
    """
    y_NO = x_NK.new_empty(len(x_NK), w_eKO.shape[2], dtype=dtype)
    begin = 0
    for expert, rows in enumerate(rows_e.tolist()):
        part = slice(begin, begin + rows)
        y_NO[part] = (x_NK[part].float() @ w_eKO[expert].float()) * scale_N[part, None] * scale_eO[expert]
        begin += rows
    return y_NO


@scaled_grouped_mm.register_kernel("cuda")
def _(x_NK, scale_N, w_eKO, scale_eO, rows_e, dtype):  # pragma: no cover  (on a GPU with products in fp8)
    ends_e = rows_e.cumsum(0).int()
    if x_NK.dtype is torch.bfloat16:
        return torch.nn.functional.grouped_mm(x_NK, w_eKO, offs=ends_e).to(dtype)
    return torch._scaled_grouped_mm(x_NK, w_eKO, scale_N, scale_eO, ends_e, out_dtype=torch.bfloat16).to(dtype)


@scaled_grouped_mm.register_fake
def _(x_NK, scale_N, w_eKO, scale_eO, rows_e, dtype):
    return x_NK.new_empty(len(x_NK), w_eKO.shape[2], dtype=dtype)


class LowExperts(NamedTuple):
    """Experts with weights in few bits."""

    wi_eDI: Rounded
    wo_eFD: Rounded
    biases: tuple[torch.Tensor, ...]
    precision: str


def lowered(weights: tuple[torch.Tensor, ...], precision: str) -> LowExperts:
    """These experts' weights rounded, by columns, and stored by columns, as kernels want them; biases stay."""
    wi, wo = (rounded(weight, precision, 1) for weight in weights[:2])
    wi, wo = (one._replace(numbers=one.numbers.mT.contiguous().mT) for one in (wi, wo))
    return LowExperts(wi, wo, tuple(weights[2:]), precision)


def low_ffn(x_ND: torch.Tensor, rows_e: torch.Tensor, experts: LowExperts, activation: Activation) -> torch.Tensor:
    """y_ND of rows that stand expert after expert; rows and hidden layer are rounded before each product."""
    biases = experts.biases
    h_NI = with_bias(_product(x_ND, experts.wi_eDI, rows_e, experts.precision), rows_e, *biases[:1])
    h_NF = activation.function(h_NI)
    return with_bias(_product(h_NF, experts.wo_eFD, rows_e, experts.precision), rows_e, *biases[1:])


def _product(x_NK: torch.Tensor, w_eKO: Rounded, rows_e: torch.Tensor, precision: str) -> torch.Tensor:
    x = rounded(x_NK, precision, 1)
    return scaled_grouped_mm(x.numbers, x.scale, w_eKO.numbers, w_eKO.scale, rows_e, x_NK.dtype)
