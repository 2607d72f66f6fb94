"""Dropless expert parallelism: the control that the paper did not run."""

from typing import Any, NamedTuple

import torch

from routers.base import Routing
from systems.base import Account, LayerShape, System, divisible
from systems.collectives import all_to_all
from systems.engines import Copies
from systems.permute import experts_of_arrivals, inverse, weighted_sum
from systems.planners.placement import PLACEMENTS


class Counts(NamedTuple):
    """Copies of a call: their order by slot, what each rank brings for each expert here, and rows to and from ranks."""

    order_N: torch.Tensor
    received_Ge: torch.Tensor
    sent_G: list[int]
    received_G: list[int]


class ExpertParallel(System):
    """Each expert lives whole on one rank; tokens travel there and back by all-to-all-v, none padded, none dropped.

    placement: contiguous (as DeepSpeed places them) or round_robin.
    """

    stateful = False

    def __init__(self, *, placement: str = "contiguous", **layer) -> None:
        super().__init__(**layer)
        owner_E = PLACEMENTS[placement](self.shape.num_experts, self.world_size)
        expert_of_slot_E = torch.argsort(owner_E, stable=True)  # slots are numbered rank by rank
        num_local = self.shape.num_experts // self.world_size
        mine = expert_of_slot_E.view(self.world_size, num_local)[self.rank].tolist()
        self._weights = self.engine.prepare(*layer["weights"].experts(mine))
        self._owner_E = owner_E
        self._slot_of_expert_E = inverse(expert_of_slot_E).to(self._weights[0].device)

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, placement: str, **_: Any) -> None:
        divisible(
            "model.num_experts", shape.num_experts, world_size, "expert parallelism puts E/G experts on each rank"
        )
        if placement not in PLACEMENTS:
            raise ValueError(f"system.placement is {placement!r}; it must be one of {', '.join(PLACEMENTS)}")

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Counts travel first, so that rows can without padding; the way back is the same exchange turned round."""
        with self.span("metadata"):
            counts = self.count(routing)
        with self.span("dispatch"):
            token_N = counts.order_N // self.shape.top_k
            x_RD = all_to_all(x_TD[token_N], self.group, counts.received_G, counts.sent_G)
        with self.span("experts"):
            y_RD = self.compute(x_RD, counts)
        with self.span("combine"):
            y_ND = all_to_all(y_RD, self.group, counts.sent_G, counts.received_G)
            y_ND = torch.empty_like(y_ND).index_copy_(0, counts.order_N, y_ND)
            return weighted_sum(y_ND, routing.weight_TK)

    def count(self, routing: Routing) -> Counts:
        """Tell the other ranks how many rows they will get; the host waits for what they tell."""
        slot_N = self._slot_of_expert_E[routing.expert_TK.flatten()]
        order_N, sent_E = self.engine.group(slot_N, self.shape.num_experts)
        received_Ge = all_to_all(sent_E, self.group).view(self.world_size, -1)
        sent_G = sent_E.view(self.world_size, -1).sum(1).tolist()
        return Counts(order_N, received_Ge, sent_G, received_Ge.sum(1).tolist())

    def compute(self, x_RD: torch.Tensor, counts: Counts) -> torch.Tensor:
        """y_RD of the rows that have come, by source rank and expert."""
        expert_R = experts_of_arrivals(counts.received_Ge, len(x_RD))
        copies = Copies(*self.engine.group(expert_R, counts.received_Ge.shape[1]))
        return self.engine(x_RD, copies, *self._weights)

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        here_E = self._owner_E == self.rank
        rows_e = tokens_GE[:, here_E].sum(0)
        rows = float(rows_e.sum())
        received_here = tokens_GE[self.rank, here_E].sum()
        leaving, arriving = tokens_GE[self.rank].sum() - received_here, rows - received_here
        counts = 8 * self.shape.num_experts * (self.world_size - 1) / self.world_size
        bytes_sent = float(leaving + arriving) * self.shape.d_model * element_size + counts
        memory_bytes = self.ffn_bytes(rows, int(rows_e.count_nonzero()), element_size)
        return Account(rows, rows, dropped=0, bytes_sent=bytes_sent, memory_bytes=memory_bytes)
