"""Tutel: padded expert parallelism whose capacity follows the routing, in overlapped parts, or with gathered weights.

Source: "Tutel: Adaptive Mixture-of-Experts at Scale" (MLSys'23); the rule of the capacity and which copies it keeps
are those of its `fast_dispatch.py`. Ours: the capacity is that of the rank with most tokens, not of each rank's own
number; it is at least one slot; gate weights are the router's, not normalised again. Left out: 2DH all-to-all (many
nodes), r > 1 (more ranks than experts), MSCCL, routing by priority, and the search that picks r and the overlap degree
while it runs: here both are options.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from systems.base import Account, LayerShape
from systems.collectives import all_gather
from systems.engines import ACTIVATIONS
from systems.engines.activations import batched_ffn
from systems.padded import PaddedExpertParallel

OVERLAP_DEGREES = (1, 2, 4, 8)


def tutel_capacity(shape: LayerShape, capacity_factor: float, overlap_degree: int, largest: int) -> int:
    """C, a multiple of the overlap degree: the factor's share, or `largest`, or the smaller of the two.

    capacity_factor: above 0, K * int(factor * ceil(T/E)); 0, `largest`, which drops nothing; below 0, `largest` but no
    more than -factor gives.
    """
    share = shape.top_k * int(abs(capacity_factor) * -(-shape.max_tokens // shape.num_experts))
    wanted = share if capacity_factor > 0 else largest if capacity_factor == 0 else min(largest, share)
    return max(1, -(-wanted // overlap_degree)) * overlap_degree


class Tutel(PaddedExpertParallel):
    """Exact with capacity_factor 0; with another one what is beyond the capacity is dropped.

    capacity_factor: see `tutel_capacity`. overlap_degree: parts in which the slots travel while others are computed.
    r: 1, tokens travel to the experts; 0, weights of all experts travel to every rank in every call and tokens stay.
    """

    def __init__(self, *, capacity_factor: float = 0, overlap_degree: int = 1, r: int = 1, **layer) -> None:
        super().__init__(**layer)
        self._capacity_factor, self.chunks, self._r = capacity_factor, overlap_degree, r
        self.adaptive_capacity = capacity_factor <= 0

    def experts_held(self) -> float:
        return float(self.shape.num_experts) if self._r == 0 else super().experts_held()

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, overlap_degree: int, r: int, **_: Any) -> None:
        super().check(shape, world_size)
        if overlap_degree not in OVERLAP_DEGREES:
            raise ValueError(f"system.overlap_degree is {overlap_degree!r}; it must be 1, 2, 4 or 8")
        if r not in (0, 1):
            raise ValueError(f"system.r is {r!r}; it must be 0 (weights travel) or 1 (tokens travel)")
        if r == 0 and overlap_degree != 1:
            raise ValueError(
                f"system.overlap_degree is {overlap_degree}; it must be 1 where system.r is 0: no tokens travel"
            )

    @classmethod
    def padding(
        cls, shape: LayerShape, world_size: int, *, capacity_factor: float, overlap_degree: int, **_: Any
    ) -> float:
        if capacity_factor <= 0:
            return 1.0  # as many as the busiest expert gets: at least this
        capacity = tutel_capacity(shape, capacity_factor, overlap_degree, largest=0)
        return shape.num_experts * capacity / (shape.max_tokens * shape.top_k)

    def capacity(self, largest: int) -> int:
        return tutel_capacity(self.shape, self._capacity_factor, self.chunks, largest)

    def _replace(self, chunks: Sequence[torch.Tensor]) -> None:
        if self._r == 1:
            return super()._replace(chunks)
        (rows_ECD,) = chunks
        with self.span("dispatch"):
            every = [all_gather(weight, self.group) for weight in self._weights]
        with self.span("experts"):
            batched_ffn(rows_ECD, ACTIVATIONS[self.shape.activation], *every, out=rows_ECD)

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        account = super().account(tokens_GE, element_size)
        if self._r == 1:
            return account
        weights = self._num_local * self.shape.expert_elements(self.shape.d_ff) * element_size
        return replace(
            account,
            rows_useful=float(tokens_GE[self.rank].sum()) - account.dropped,
            bytes_sent=(self.world_size - 1) * weights + self.agreement_bytes(),
            memory_bytes=self.ffn_bytes(account.rows_computed, self.shape.num_experts, element_size),
        )
