"""FastMoE: expert parallelism whose rows travel in one exchange for each of a rank's experts, and arrive sorted.

Source: "FastMoE: A Fast Mixture-of-Expert Training System" (arXiv:2103.13262) and its code (laekov/fastmoe):
`expert_exchange` of counts, `local_scatter` into the order of experts, `global_scatter`, which is a group of sends and
receives for one local expert of every rank after the other, experts, `global_gather` and `local_gather`. The executor
that `ep` has sends all rows in one exchange and sorts them where they arrive; what lies between the two is this order.
Left out: the schedule that overlaps parts (FasterMoE's), data parallelism of experts, and the backward pass.
"""

from typing import Any, ClassVar

import torch

from routers.base import Routing
from systems.collectives import all_to_all, start_all_to_all
from systems.expert_parallel import ExpertParallel
from systems.permute import weighted_sum


class FastMoE(ExpertParallel):
    """Experts contiguous, tokens exact: the result is that of expert parallelism.

    Letters beside those of `systems.base`: e experts here, each the subject of one exchange.
    """

    fixed: ClassVar[dict[str, Any]] = {"placement": "contiguous"}

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Counts are exchanged, rows scattered expert by expert and computed where they stand, and gathered so."""
        num_local = self.shape.num_experts // self.world_size
        with self.span("metadata"):
            expert_N = routing.expert_TK.flatten()
            # By local expert, and then by rank: what one exchange sends stands together.
            order_N, sent_E = self.engine.group(
                expert_N % num_local * self.world_size + expert_N // num_local, self.shape.num_experts
            )
            sent_eG = sent_E.view(num_local, self.world_size)
            received_eG = all_to_all(sent_eG.T, self.group).T
            rows_e = received_eG.sum(1)
            sent, received = torch.stack([sent_eG, received_eG]).tolist()
        with self.span("dispatch"):
            x_RD = self._exchange(x_TD[order_N // self.shape.top_k], sent, received)
        with self.span("experts"):
            y_RD = self.engine.of_sorted(x_RD, rows_e, *self._weights)
        with self.span("combine"):
            y_ND = self._exchange(y_RD, received, sent)
            y_ND = torch.empty_like(y_ND).index_copy_(0, order_N, y_ND)
            return weighted_sum(y_ND, routing.weight_TK)

    def _exchange(self, x_RD: torch.Tensor, sent: list[list[int]], received: list[list[int]]) -> torch.Tensor:
        """One exchange after another, of sent[e][g] rows to and received[e][g] from rank g for local expert e."""
        exchanged = x_RD.new_empty(sum(map(sum, received)), x_RD.shape[1])
        begins, ends = 0, 0
        for sent_G, received_G in zip(sent, received, strict=True):
            leaving, arriving = sum(sent_G), sum(received_G)
            into_rD, x_rD = exchanged[ends : ends + arriving], x_RD[begins : begins + leaving]
            start_all_to_all(x_rD, self.group, received_G, sent_G, into=into_rD, overlap=False)
            begins, ends = begins + leaving, ends + arriving
        return exchanged
