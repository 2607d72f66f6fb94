"""Experts that are computed where their weights lie, beside the device: as operations that a simulation can price.

On a machine at hand the unit beside the memory is its host, which computes at once and not beside anything; on a
described device it is a described unit, which works while the device does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from systems.base import LayerShape
from systems.engines import ACTIVATIONS
from systems.engines.activations import expert_ffn


class ExpertSizes(NamedTuple):
    """Bytes of an expert's weights and of a row, and FLOPs of a row through it."""

    expert_bytes: float
    row_bytes: float
    row_flops: float

    @classmethod
    def of(cls, shape: LayerShape, element_size: int) -> "ExpertSizes":
        """Those of a layer."""
        weights = shape.expert_elements(shape.d_ff) * element_size
        return cls(weights, shape.d_model * element_size, shape.row_flops(shape.d_ff))


@dataclass(frozen=True)
class Unit:
    """near_flops_per_s: of its matrix products. near_bytes_per_s: that it reads of its memory. link_bytes_per_s:
    between it and the device, each way.
    """

    near_flops_per_s: float
    near_bytes_per_s: float
    link_bytes_per_s: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"system.{name} is {value!r}; it must be a positive number")

    def fetch_s(self, sizes: ExpertSizes) -> float:
        """An expert's weights to the device."""
        return sizes.expert_bytes / self.link_bytes_per_s

    def compute_s(self, rows: int, sizes: ExpertSizes) -> float:
        """Rows come, go through one expert, whose weights are read once, and results leave; 0 without rows."""
        if not rows:
            return 0.0
        read_s, multiply_s = sizes.expert_bytes / self.near_bytes_per_s, rows * sizes.row_flops / self.near_flops_per_s
        return 2 * rows * sizes.row_bytes / self.link_bytes_per_s + max(read_s, multiply_s)


@torch.library.custom_op("moe::near_ffn", mutates_args=())
def near_ffn(
    x_ND: torch.Tensor, rows_e: Sequence[int], weights: Sequence[torch.Tensor], activation: str, seconds: float
) -> torch.Tensor:
    """y_ND of rows that stand expert after expert, on the host. seconds: that a described unit takes."""
    x_ND, device = x_ND.cpu(), x_ND.device
    y_ND = torch.empty_like(x_ND)
    begin = 0
    for expert, rows in enumerate(rows_e):
        part = slice(begin, begin + rows)
        if rows:
            y_ND[part] = expert_ffn(x_ND[part], ACTIVATIONS[activation], *(one[expert].cpu() for one in weights))
        begin += rows
    return y_ND.to(device)


@near_ffn.register_fake
def _(x_ND, rows_e, weights, activation, seconds):
    return torch.empty_like(x_ND)


@torch.library.custom_op("moe::join_near", mutates_args=())
def join_near(y_ND: torch.Tensor) -> torch.Tensor:
    """What the unit beside the memory has computed, once it has."""
    return y_ND.clone()


@join_near.register_fake
def _(y_ND):
    return torch.empty_like(y_ND)


@torch.library.custom_op("moe::fetch_expert", mutates_args=())
def fetch_expert(weight: torch.Tensor, like: torch.Tensor, seconds: float) -> torch.Tensor:
    """A copy of one expert's weights where `like` is. seconds: that it takes on a described link."""
    return weight.to(like.device, copy=True)


@fetch_expert.register_fake
def _(weight, like, seconds):
    return torch.empty_like(weight, device=like.device)
