"""What our own kernels declare of themselves, so that described devices can say how long they take.

By the name of an operation: its arguments -> the grouped products that it consists of. Operations of torch need no
entry: their arguments tell all there is to know.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class GroupedProduct(NamedTuple):
    """rows_e[e] rows times expert e's matrix [k, n]; kernel: what kind of kernel does it; weight: for its type."""

    kernel: str
    rows_e: torch.Tensor
    n: int
    k: int
    weight: torch.Tensor


def _triton(x, order_N, rows_e, w_eOK, *rest) -> list[GroupedProduct]:
    return [GroupedProduct("triton", rows_e, w_eOK.shape[1], w_eOK.shape[2], w_eOK)]


def _sdd(x_PD, wi_HD, rows, columns, offsets, rows_e) -> list[GroupedProduct]:
    return [GroupedProduct("block_sparse", rows_e, len(wi_HD) // len(rows_e), x_PD.shape[1], wi_HD)]


def _dsd(hidden, wo_HD, rows, columns, offsets, rows_e) -> list[GroupedProduct]:
    return [GroupedProduct("block_sparse", rows_e, wo_HD.shape[1], len(wo_HD) // len(rows_e), wo_HD)]


def _cpu(x_MD, order_N, rows_e, wi, wo, *rest) -> list[GroupedProduct]:
    """Packed weights [e, panels, K/pair, panel, pair] (`systems.engines.cpu`)."""
    in_width, width, d_model = wi.shape[1] * wi.shape[3], wo.shape[2] * wo.shape[4], x_MD.shape[1]
    return [GroupedProduct("cpu", rows_e, in_width, d_model, wi), GroupedProduct("cpu", rows_e, d_model, width, wo)]


DECLARED: dict[str, Callable[..., list[GroupedProduct]]] = {
    "moe::grouped_gemm": _triton,
    "moe::sdd": _sdd,
    "moe::dsd": _dsd,
    "moe_cpu::grouped_ffn": _cpu,
}
