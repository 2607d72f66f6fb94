"""Expert parallelism in a padded layout: every rank sends every expert C slots, filled or not.

Shapes do not depend on the routing, so no counts are exchanged and the experts of a rank are one batched product; the
price is that empty slots travel and are computed too, and that copies beyond C are dropped.

Letters beside those of `systems.base`: C slots of an expert on one rank, c of them in a chunk, P = E * C + 1 rows: all
slots of a rank and the row of what has none, R = G * c rows of an expert in a chunk.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from routers.base import Routing
from systems.base import Account, LayerShape, LayerWeights, System, divisible
from systems.collectives import InFlight, start_all_to_all
from systems.engines import ACTIVATIONS
from systems.engines.activations import batched_ffn
from systems.permute import places_in_experts, weighted_sum


class PaddedExpertParallel(System):
    """capacity, places, slots, all-to-all, experts, all-to-all, and each token finds its copies by their slots.

    The first C copies of an expert on each rank are kept: tokens in their order, all first choices before any second.
    Experts are placed contiguously. The C slots may travel in `chunks` parts: while one part is computed the next
    arrives and the last leaves.
    """

    stateful = False

    own_engine = "bmm"
    chunks = 1
    adaptive_capacity = False  # whether it follows the routing, so that ranks must agree on it

    def __init__(self, **layer) -> None:
        super().__init__(**layer)
        self._num_local = self.shape.num_experts // self.world_size
        self._mine, self._weights = self._placed(layer["weights"])

    def _placed(self, weights: LayerWeights) -> tuple[list[int], tuple[torch.Tensor, ...]]:
        """The experts of this rank, in their order, and what it has of their weights."""
        first = self.rank * self._num_local
        mine = list(range(first, first + self._num_local))
        return mine, weights.experts(mine)

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, **_: Any) -> None:
        divisible(
            "model.num_experts", shape.num_experts, world_size, "expert parallelism puts E/G experts on each rank"
        )

    @abstractmethod
    def capacity(self, largest: int) -> int:
        """C, at least 1 and the same on all ranks: a multiple of `chunks`.

        largest: the most copies of any rank for one expert; 0 where the capacity does not follow the routing.
        """

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        num_experts = self.shape.num_experts
        with self.span("metadata"):
            place_TK, rows_E = places_in_experts(routing.expert_TK, num_experts)
            capacity = self.capacity(self._largest(rows_E) if self.adaptive_capacity else 0)
            slot_TK = slots_of_copies(routing.expert_TK, place_TK, num_experts, capacity, self.chunks)
        with self.span("dispatch"):
            rows_PD = put_in_slots(x_TD, slot_TK, num_experts * capacity)
        self._replace(rows_PD[:-1].view(self.chunks, num_experts, capacity // self.chunks, -1).unbind())
        with self.span("combine"):
            return weighted_sum(rows_PD[slot_TK.flatten()], routing.weight_TK)

    def _largest(self, rows_E: torch.Tensor) -> int:
        """The largest count of any rank: one all-reduce, for which the host waits."""
        largest = rows_E.max()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    def _replace(self, chunks: Sequence[torch.Tensor]) -> None:
        """Replace the rows of each chunk [E, c, D] by what their experts make of them."""
        overlap = self.chunks > 1
        with self.span("dispatch"):
            arriving = deque(start_all_to_all(x_EcD, self.group, overlap=overlap) for x_EcD in chunks)
        leaving = [self._compute(arriving.popleft(), into_EcD) for into_EcD in chunks]
        with self.span("combine"):
            for part in leaving:
                part.wait()

    def _compute(self, arriving: InFlight, into_EcD: torch.Tensor) -> InFlight:
        """One chunk of all ranks, once here, goes through the experts of this rank and is on its way back.

        It may take the place of what was sent: all of that has left when the others' chunk is here.
        """
        with self.span("dispatch"):
            x_GecD = arriving.wait().unflatten(0, (self.world_size, -1))
            x_eRD = x_GecD.transpose(0, 1).flatten(1, 2)
        with self.span("experts"):
            y_eRD = batched_ffn(x_eRD, ACTIVATIONS[self.shape.activation], *self._weights)
        with self.span("combine"):
            y_GecD = y_eRD.unflatten(1, (self.world_size, -1)).transpose(0, 1)
            return start_all_to_all(y_GecD.flatten(0, 1), self.group, into=into_EcD, overlap=self.chunks > 1)

    def agreement_bytes(self) -> float:
        """What a rank sends so that all know the capacity: an all-reduce of one int64, or nothing."""
        return 16 * (self.world_size - 1) / self.world_size if self.adaptive_capacity else 0.0

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        capacity = self.capacity(int(tokens_GE.max()) if self.adaptive_capacity else 0)
        rows = float(self.shape.num_experts * capacity)
        away = (self.world_size - 1) / self.world_size
        return Account(
            rows_computed=rows,
            rows_useful=float(tokens_GE[:, self._mine].clamp(max=capacity).sum()),
            dropped=int((tokens_GE[self.rank] - capacity).clamp(min=0).sum()),
            bytes_sent=2 * away * rows * self.shape.d_model * element_size + self.agreement_bytes(),
            memory_bytes=self.ffn_bytes(rows, self.chunks * self._num_local, element_size),
        )


def slots_of_copies(
    expert_TK: torch.Tensor, place_TK: torch.Tensor, num_experts: int, capacity: int, chunks: int = 1
) -> torch.Tensor:
    """slot_TK: the row of each copy in [chunks, E, C / chunks] slots; E * C for one that is dropped.

    Example, 2 experts of 2 slots: experts [1, 0, 1, 1] with places [0, 0, 1, 2] -> [2, 0, 3, 4], and [1, 0, 3, 4] in
    2 chunks.
    """
    in_chunk = capacity // chunks
    slot_TK = (place_TK // in_chunk * num_experts + expert_TK) * in_chunk + place_TK % in_chunk
    return slot_TK.masked_fill(place_TK >= capacity, num_experts * capacity)


def put_in_slots(x_TD: torch.Tensor, slot_TK: torch.Tensor, num_slots: int) -> torch.Tensor:
    """[num_slots + 1, D]: copies where slot_TK says, zero elsewhere and in the last row, that of the dropped."""
    rows_PD = x_TD.new_zeros(num_slots + 1, x_TD.shape[1])
    for slot_T in slot_TK.unbind(1):
        rows_PD.index_copy_(0, slot_T, x_TD)
    rows_PD[-1] = 0
    return rows_PD
