"""Expert parallelism in which every rank knows what all bring for all experts: what systems build on that act on loads.

As `systems.expert_parallel`, but counts are gathered by all, not exchanged by pairs, and a subclass may choose other
experts, leave copies out, compute some copies in parts only, or do something while rows travel. Letters beside those of
`systems.base`: S groups, which are pairs of an expert and one of `parts` ways to compute its copies, e*parts of them
here; n copies that are sent.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from routers.base import Routing
from systems.base import Account, LayerShape, System, divisible
from systems.collectives import all_gather, all_to_all, start_all_to_all
from systems.engines import Copies
from systems.permute import experts_of_arrivals, weighted_sum


@dataclass(frozen=True)
class Plan:
    """What a call did. routing: the experts and weights that it went by. part_N: in which way each copy of this rank
    was computed, `parts` where it was dropped. rows_GS: copies of each rank by group, on the host. noted: what a
    subclass has to know later.
    """

    routing: Routing
    part_N: torch.Tensor
    rows_GS: torch.Tensor
    noted: Any = None


class CountedExpertParallel(System):
    """Experts contiguous; with nothing overridden, expert parallelism."""

    parts = 1
    stateful = False

    def __init__(self, **layer) -> None:
        super().__init__(**layer)
        self._num_local = self.shape.num_experts // self.world_size
        first = self.rank * self._num_local
        self._mine = list(range(first, first + self._num_local))
        self._whole = layer["weights"].experts(self._mine)
        self._weights = self.engine.prepare(*self._whole)

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, **_: Any) -> None:
        divisible(
            "model.num_experts", shape.num_experts, world_size, "expert parallelism puts E/G experts on each rank"
        )

    # What a subclass may override.

    def choose(self, routing: Routing) -> tuple[Routing, torch.Tensor]:
        """The routing to go by, and in which way each copy is computed [N]: `parts` where it is not."""
        return routing, torch.zeros_like(routing.expert_TK).flatten()

    def note(self, rows_GS: torch.Tensor) -> Any:
        """What the call has to know of all ranks' counts, on the host, before anything travels; kept in its plan."""
        return None

    def meanwhile(self) -> None:
        """Computation that rows need not be here for."""
        return

    def compute(self, x_RD: torch.Tensor, group_R: torch.Tensor) -> torch.Tensor:
        """y_RD of rows of these groups, which are numbered from 0 on each rank."""
        return self.engine(x_RD, Copies(*self.engine.group(group_R, self._num_local)), *self._weights)

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Choose, let all ranks count, send what is computed, compute, and bring back; dropped copies are 0."""
        num_groups = self.shape.num_experts * self.parts
        with self.span("metadata"):
            routing, part_N = self.choose(routing)
            group_N = routing.expert_TK.flatten() * self.parts + part_N
            group_N = group_N.masked_fill(part_N == self.parts, num_groups)
            order_N, rows_S = self.engine.group(group_N, num_groups)
            device_GS = all_gather(rows_S.unsqueeze(0), self.group)
            rows_GS = device_GS.cpu()
            self.plan = Plan(replace(routing, logits_TE=None), part_N, rows_GS, self.note(rows_GS))
            here = slice(self.rank * self._num_local * self.parts, (self.rank + 1) * self._num_local * self.parts)
            sent_G = rows_GS[self.rank].view(self.world_size, -1).sum(1).tolist()
            received_G = rows_GS[:, here].sum(1).tolist()
            order_n = order_N[: sum(sent_G)]
        with self.span("dispatch"):
            x_nD = x_TD[order_n // self.shape.top_k]
            arriving = start_all_to_all(x_nD, self.group, received_G, sent_G)
            self.meanwhile()
            x_RD = arriving.wait()
        with self.span("experts"):
            y_RD = self.compute(x_RD, experts_of_arrivals(device_GS[:, here], len(x_RD)))
        with self.span("combine"):
            y_nD = all_to_all(y_RD, self.group, sent_G, received_G)
            new = x_TD.new_zeros if len(order_n) < len(order_N) else x_TD.new_empty
            y_ND = new(len(order_N), x_TD.shape[1]).index_copy_(0, order_n, y_nD)
            return weighted_sum(y_ND, routing.weight_TK)

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        """Of the call whose plan this is, whatever the routing was."""
        rows_GE = self.plan.rows_GS.view(self.world_size, -1, self.parts).sum(2)
        rows_e = rows_GE[:, self._mine].sum(0)
        rows = float(rows_e.sum())
        here = float(rows_GE[self.rank, self._mine].sum())
        leaving, arriving = float(rows_GE[self.rank].sum()) - here, rows - here
        counts = 8 * self.shape.num_experts * self.parts * (self.world_size - 1)
        return Account(
            rows_computed=rows,
            rows_useful=rows,
            dropped=int((self.plan.part_N == self.parts).sum()),
            bytes_sent=(leaving + arriving) * self.shape.d_model * element_size + counts,
            memory_bytes=self.ffn_bytes(rows, int(rows_e.count_nonzero()), element_size),
        )


def gate_scores(routing: Routing) -> torch.Tensor:
    """float32 [T, E]; ValueError, in one sentence, where the router gives none."""
    if routing.logits_TE is None:
        raise ValueError("this router gives no scores of the experts that a token does not take")
    return routing.logits_TE.float()
