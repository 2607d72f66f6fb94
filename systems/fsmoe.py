"""FSMoE: a mesh of nodes whose all-to-alls, all-gathers, products and reduce-scatters overlap, in chosen many parts.

Source: "FSMoE: A Flexible and Scalable Training System for Sparse Mixture-of-Experts Models" (ASPLOS'25) and its code
(xpan413/FSMoE, branch megatron), the forward pass alone. The number of parts is what its model of time says is best.
Ours: nothing is dropped, because the capacity is the largest count of any rank and expert; the model of time is asked
in every call, since that capacity follows the routing; its rates are those that planners are told, not fits of
collectives of several sizes; its code has no parts where an all-to-all takes less than a millisecond, and here they
are worth it there too; streams are those of the collectives alone, so that a part's all-gather is issued while
the part before is computed. Left out: the backward pass, gradient partitioning, tensor-parallel attention.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from systems.base import LayerShape
from systems.mesh import MeshExpertParallel

DEGREES = (1, 2, 4, 8)


class FSMoE(MeshExpertParallel):
    """degree: the number of parts; `auto` takes the best of 1, 2, 4 and 8 by the model of time."""

    def __init__(self, *, degree: int | str = "auto", **layer) -> None:
        super().__init__(**layer)
        self._degree = degree

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, degree: int | str, **options: Any) -> None:
        super().check(shape, world_size, **options)
        if degree != "auto" and degree not in DEGREES:
            raise ValueError(f"system.degree is {degree!r}; it must be auto, 1, 2, 4 or 8")

    def capacity(self, largest: int) -> int:
        """The largest count, filled up to a multiple of the number of parts, which is chosen by it."""
        largest = max(largest, 1)
        self.chunks = self.best_degree(largest) if self._degree == "auto" else int(self._degree)
        return -(-largest // self.chunks) * self.chunks

    def best_degree(self, capacity: int) -> int:
        """The argument of the least `time_s`."""
        rates = self.rates
        crossing, gathered, flops = self.volumes(capacity)
        steps = [(rates.operation_s, crossing / rates.bytes_per_s)]
        steps += [(rates.operation_s, gathered / (rates.near_bytes_per_s or rates.bytes_per_s))] * 2
        steps += [(rates.operation_s, flops / rates.flops_per_s)]
        return min(DEGREES, key=lambda degree: time_s(degree, *steps))

    def _replace(self, chunks: Sequence[torch.Tensor]) -> None:
        """One part ahead: the next one is gathered, and the last one leaves, while a part is computed."""
        with self.span("dispatch"):
            crossing = deque(self._cross(x_EcD) for x_EcD in chunks)
            gathering = deque([self._gather(crossing.popleft())])
        summing, leaving = deque(), []
        for _ in chunks:
            with self.span("dispatch"):
                if crossing:
                    gathering.append(self._gather(crossing.popleft()))
                x_RcD = gathering.popleft().wait()
            with self.span("experts"):
                y_RcD = self._compute(x_RcD)
            with self.span("combine"):
                summing.append(self._sum(y_RcD))
                if len(summing) > 1:
                    leaving.append(self._cross(summing.popleft().wait(), chunks[len(leaving)]))
        with self.span("combine"):
            leaving.append(self._cross(summing.popleft().wait(), chunks[len(leaving)]))
            for part in leaving:
                part.wait()


def time_s(degree: int, *steps: tuple[float, float]) -> float:
    """Seconds of a forward pass in so many parts; steps: (start-up, whole) of all-to-all, all-gather, reduce-scatter
    and experts, of which a part takes start-up + whole / degree.

    The cases of the paper's section 4.3, of which the slowest bounds the others, for a forward pass.
    """
    cross_s, gather_s, sum_s, experts_s = (start + whole / degree for start, whole in steps)
    between = (degree * experts_s, 2 * (degree - 1) * cross_s, (degree - 1) * (gather_s + sum_s))
    return 2 * cross_s + gather_s + sum_s + max(between)
