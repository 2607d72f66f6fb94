"""MoNTA: the all-to-all between nodes overlaps with the all-gather within them, in parts; experts compute at once.

Source: "MoNTA: Accelerating Mixture-of-Experts Training with Network-Traffic-Aware Parallel Optimization"
(arXiv:2411.00662) and its code, a fork of DeepSpeed (EnflameTechnology/DeepSpeed). Its strategies are `plain`, one
all-to-all in which every rank of a node gets all rows for its experts; a crossing once a node and an all-gather there;
and the same in 2, 4 or 8 parts that overlap. Ours: tokens are those of data-parallel ranks, not the same on all ranks
of a node, so a rank's own rows stand for its slice and none is dropped before or gathered after; the equations by
which it chooses are not confirmed, and those here are the time of each strategy by start-up and bytes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from systems.base import Account, LayerShape
from systems.collectives import all_to_all
from systems.mesh import MeshExpertParallel

PLAIN = 0
PARTS = (1, 2, 4, 8)


class MoNTA(MeshExpertParallel):
    """strategy: `plain`, a number of parts, or `auto`, the quickest of all of them by `time_s`."""

    def __init__(self, *, strategy: int | str = "auto", **layer) -> None:
        super().__init__(**layer)
        self._strategy = strategy
        self.parts = 1  # PLAIN or the number of parts of the last call

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, strategy: int | str, **options: Any) -> None:
        super().check(shape, world_size, **options)
        if strategy not in ("auto", "plain", *PARTS):
            raise ValueError(f"system.strategy is {strategy!r}; it must be auto, plain, 1, 2, 4 or 8")

    def capacity(self, largest: int) -> int:
        largest = max(largest, 1)
        if self._strategy == "auto":
            self.parts = min((PLAIN, *PARTS), key=lambda parts: self.time_s(parts, largest))
        else:
            self.parts = PLAIN if self._strategy == "plain" else int(self._strategy)
        self.chunks = max(1, self.parts)
        return -(-largest // self.chunks) * self.chunks

    def time_s(self, parts: int, capacity: int) -> float:
        """Seconds that rows take to the experts: the slower link works on all parts, the other on one."""
        rates = self.rates
        crossing, gathered, _ = self.volumes(capacity)
        start_s, near = rates.operation_s, rates.near_bytes_per_s or rates.bytes_per_s
        if parts == PLAIN:  # every rank of the other nodes gets what one of them needs, and so do those of its own
            return start_s + (self.mesh.per_node * crossing + gathered / self.mesh.nodes) / rates.bytes_per_s
        cross_s, gather_s = start_s + crossing / parts / rates.bytes_per_s, start_s + gathered / parts / near
        put_together_s = 0.0 if parts == 1 else (crossing + gathered) / rates.memory_bytes_per_s
        return cross_s + (parts - 1) * max(cross_s, gather_s) + gather_s + put_together_s

    def _replace(self, chunks: Sequence[torch.Tensor]) -> None:
        if self.parts == PLAIN:
            return self._replace_at_once(chunks[0])
        with self.span("dispatch"):
            crossing = [self._cross(x_EcD) for x_EcD in chunks]
            gathering = [self._gather(part) for part in crossing]
            x_RCD = torch.cat([part.wait() for part in gathering], 1) if len(chunks) > 1 else gathering[0].wait()
        with self.span("experts"):
            y_RCD = self._compute(x_RCD)
        with self.span("combine"):
            summing = [self._sum(y_RcD) for y_RcD in y_RCD.chunk(len(chunks), 1)]
            leaving = [self._cross(part.wait(), into) for part, into in zip(summing, chunks, strict=True)]
            for part in leaving:
                part.wait()

    def _replace_at_once(self, rows_ECD: torch.Tensor) -> None:
        """Every rank of a node gets its own copy of all rows for the node's experts, and their sum is made at home."""
        nodes, per_node = self.mesh.nodes, self.mesh.per_node
        with self.span("dispatch"):
            x_NeCD = rows_ECD.unflatten(0, (nodes, -1))
            x_GeCD = x_NeCD.unsqueeze(1).expand(-1, per_node, -1, -1, -1).flatten(0, 1)
            x_RCD = all_to_all(x_GeCD, self.group).flatten(0, 1)
        with self.span("experts"):
            y_RCD = self._compute(x_RCD)
        with self.span("combine"):
            y_GeCD = all_to_all(y_RCD.unflatten(0, (self.world_size, -1)), self.group)
            torch.sum(y_GeCD.unflatten(0, (nodes, per_node)), 1, out=rows_ECD.unflatten(0, (nodes, -1)))

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        account = super().account(tokens_GE, element_size)
        if self.parts == PLAIN:
            rows = account.rows_computed * self.shape.d_model * element_size
            others = (self.world_size - 1) / self.world_size * self.mesh.per_node
            return replace(account, bytes_sent=2 * rows * others + self.agreement_bytes())
        if self.chunks > 1:  # experts compute all parts at once
            width, rows = self.shape.d_ff // self.mesh.per_node, account.rows_computed * self.mesh.per_node
            return replace(account, memory_bytes=self.ffn_bytes(rows, len(self._mine), element_size, width=width))
        return account
