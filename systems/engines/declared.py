"""What our own kernels declare of themselves, so that described devices can say how long they take.

By the name of an operation: its arguments -> the grouped products that it consists of, or what else it does to a
rank's clocks. Operations of torch need no entry: their arguments tell all there is to know.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch


class GroupedProduct(NamedTuple):
    """rows_e[e] rows times expert e's matrix [k, n]; kernel: what kind of kernel does it; weight: for its type."""

    kernel: str
    rows_e: torch.Tensor
    n: int
    k: int
    weight: torch.Tensor


class Timeline(Protocol):
    """A rank's clocks, of which some operations move others than the device's."""

    def compute(self, name: str, seconds: float) -> None: ...

    def beside(self, name: str, seconds: float) -> None: ...

    def join(self) -> None: ...


class Other(NamedTuple):
    """An operation that is no grouped product; charge: moves the clocks."""

    charge: Callable[[Timeline], None]


def _triton(x, order_N, rows_e, w_eOK, *rest) -> list[GroupedProduct]:
    return [GroupedProduct("triton", rows_e, w_eOK.shape[1], w_eOK.shape[2], w_eOK)]


def _sdd(x_PD, wi_HD, rows, columns, offsets, rows_e) -> list[GroupedProduct]:
    return [GroupedProduct("block_sparse", rows_e, len(wi_HD) // len(rows_e), x_PD.shape[1], wi_HD)]


def _dsd(hidden, wo_HD, rows, columns, offsets, rows_e) -> list[GroupedProduct]:
    return [GroupedProduct("block_sparse", rows_e, wo_HD.shape[1], len(wo_HD) // len(rows_e), wo_HD)]


def _scaled(x_NK, scale_N, w_eKO, scale_eO, rows_e, dtype) -> list[GroupedProduct]:
    """As fast as a kernel of ours would be; torch's own takes fp8 on Hopper and later."""
    return [GroupedProduct("triton", rows_e, w_eKO.shape[2], w_eKO.shape[1], w_eKO)]


def _near(x_ND, rows_e, weights, activation, seconds) -> Other:
    return Other(lambda timeline: timeline.beside("near_ffn", seconds))


def _join(y_ND) -> Other:
    return Other(lambda timeline: timeline.join())


def _fetch(weight, like, seconds) -> Other:
    return Other(lambda timeline: timeline.compute("fetch_expert", seconds))


def _cpu(x_MD, order_N, rows_e, wi, wo, *rest) -> list[GroupedProduct]:
    """Packed weights [e, panels, K/pair, panel, pair] (`systems.engines.cpu`)."""
    in_width, width, d_model = wi.shape[1] * wi.shape[3], wo.shape[2] * wo.shape[4], x_MD.shape[1]
    return [GroupedProduct("cpu", rows_e, in_width, d_model, wi), GroupedProduct("cpu", rows_e, d_model, width, wo)]


DECLARED: dict[str, Callable[..., list[GroupedProduct] | Other]] = {
    "moe::grouped_gemm": _triton,
    "moe::sdd": _sdd,
    "moe::dsd": _dsd,
    "moe::scaled_grouped_mm": _scaled,
    "moe::near_ffn": _near,
    "moe::join_near": _join,
    "moe::fetch_expert": _fetch,
    "moe_cpu::grouped_ffn": _cpu,
}
