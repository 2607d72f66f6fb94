"""GShard: padded expert parallelism with a fixed capacity, which drops what is beyond it.

Source: "GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding" (ICLR'21), the gating of its
Algorithm 1 in groups of one rank's tokens. Ours: copies are put into slots and taken out by index, not by products
with one-hot matrices, and the capacity is rounded up. Left out: random routing of second choices, the auxiliary loss.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from routers.base import Routing
from systems.base import LayerShape
from systems.padded import PaddedExpertParallel


def gshard_capacity(shape: LayerShape, capacity_factor: float) -> int:
    """C = K * T/E * factor, rounded up."""
    return math.ceil(shape.top_k * shape.max_tokens * capacity_factor / shape.num_experts)


class GShard(PaddedExpertParallel):
    """Top-1 or top-2 with keep-first capacity; a second choice never displaces a first one.

    capacity_factor: 1 is GShard's, 2T/E slots for top-2 and thereby T/E for top-1. Top-2 normalises the two gate
    weights to a sum of 1; it is a stress test of the layer alone, because the encoder routes top-1.
    """

    exactness = "approximate"  # only in what it drops

    def __init__(self, *, capacity_factor: float = 1.0, **layer) -> None:
        super().__init__(**layer)
        self._capacity = gshard_capacity(self.shape, capacity_factor)

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, capacity_factor: float, **_: Any) -> None:
        super().check(shape, world_size)
        if capacity_factor <= 0:
            raise ValueError(f"system.capacity_factor is {capacity_factor!r}; it must be a positive number")
        if shape.top_k > 2:
            raise ValueError(f"system gshard has top-1 or top-2 routing, got top_k = {shape.top_k}")

    @classmethod
    def padding(cls, shape: LayerShape, world_size: int, *, capacity_factor: float, **_: Any) -> float:
        capacity = gshard_capacity(shape, capacity_factor)
        return shape.num_experts * capacity / (shape.max_tokens * shape.top_k)

    def capacity(self, largest: int) -> int:
        return self._capacity

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        if self.shape.top_k == 2:
            weight_TK = routing.weight_TK
            routing = replace(routing, weight_TK=weight_TK / weight_TK.sum(1, keepdim=True))
        return super().forward(x_TD, routing)
