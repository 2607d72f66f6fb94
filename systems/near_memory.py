"""Experts that are computed where their weights lie, beside the device: as operations that a simulation can price.

On a machine at hand the unit beside the memory is its host, which computes at once and not beside anything; on a
described device it is a described unit, which works while the device does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from systems.engines import ACTIVATIONS
from systems.engines.activations import expert_ffn


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

    def fetch_s(self, expert_bytes: float) -> float:
        """An expert's weights to the device."""
        return expert_bytes / self.link_bytes_per_s

    def compute_s(self, rows: int, row_bytes: float, row_flops: float, expert_bytes: float) -> float:
        """Rows come, go through one expert, whose weights are read once, and results leave; 0 without rows."""
        if not rows:
            return 0.0
        return 2 * rows * row_bytes / self.link_bytes_per_s + max(
            expert_bytes / self.near_bytes_per_s, rows * row_flops / self.near_flops_per_s
        )


@torch.library.custom_op("moe::near_ffn", mutates_args=())
def near_ffn(
    x_ND: torch.Tensor,
    rows_e: torch.Tensor,
    weights: Sequence[torch.Tensor],
    activation: str,
    unit: Sequence[float],
    row_flops: float,
) -> torch.Tensor:
    """y_ND of rows that stand expert after expert, on the host. unit, row_flops: only for those who price it."""
    x_ND, device = x_ND.cpu(), x_ND.device
    y_ND = torch.empty_like(x_ND)
    begin = 0
    for expert, rows in enumerate(rows_e.tolist()):
        part = slice(begin, begin + rows)
        if rows:
            y_ND[part] = expert_ffn(x_ND[part], ACTIVATIONS[activation], *(one[expert].cpu() for one in weights))
        begin += rows
    return y_ND.to(device)


@near_ffn.register_fake
def _(x_ND, rows_e, weights, activation, unit, row_flops):
    return torch.empty_like(x_ND)


@torch.library.custom_op("moe::join_near", mutates_args=())
def join_near(y_ND: torch.Tensor) -> torch.Tensor:
    """What the unit beside the memory has computed, once it has."""
    return y_ND.clone()


@join_near.register_fake
def _(y_ND):
    return torch.empty_like(y_ND)


@torch.library.custom_op("moe::fetch_expert", mutates_args=())
def fetch_expert(weight: torch.Tensor, like: torch.Tensor, link_bytes_per_s: float) -> torch.Tensor:
    """A copy of one expert's weights where `like` is."""
    return weight.to(like.device, copy=True)


@fetch_expert.register_fake
def _(weight, like, link_bytes_per_s):
    return torch.empty_like(weight, device=like.device)
