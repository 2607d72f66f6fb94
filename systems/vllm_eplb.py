"""vLLM's use of EPLB: a new placement every so many batches, by the loads of a window, and replicas chosen by a hash.

Source: vllm/distributed/eplb and the routers of fused_moe (Apache-2.0), re-derived. The policy is `planners.eplb`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from routers.base import Routing
from systems.base import Account, LayerShape
from systems.collectives import all_gather
from systems.planned import PlannedExpertParallel

CHOICES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    # Its upper half: the lower bits of an odd multiple are as regular as those of the position.
    "hash": lambda position_N: (position_N * 2654435761 & 0xFFFFFFFF) >> 16,
    "position": lambda position_N: position_N,
}


class VllmEPLB(PlannedExpertParallel):
    """Each rank chooses a replica for every token copy by itself, from the copy's position (token x top_k + k) alone.

    choice: `hash` of the position modulo the number of replicas, as since change 40810, or the `position` modulo that
    number, as before: where the replicas divide top_k, a replica then gets the k-th choices of all tokens.
    Experts that remain on a rank stay in their slots, the old holders share in sending the others, and weights wait in
    a buffer of the layer until they are in place.
    Unconfirmed: the constant of the hash (Knuth's here) and that it is its upper bits that count.
    Ours: ranks tell each other how many copies go to which replica; which of an expert's copies go to which of its
    replicas is not what was drawn, only how many. Left out: rearranging in the background; groups and nodes.
    """

    def __init__(self, *, choice: str = "hash", **layer: Any) -> None:
        super().__init__(**layer)
        self._number_of = CHOICES[choice]

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, choice: str, **options: Any) -> None:
        super().check(shape, world_size, **options)
        if choice not in CHOICES:
            raise ValueError(f"system.choice is {choice!r}; it must be one of {', '.join(CHOICES)}")

    def _dispatched(self, tokens_GE: np.ndarray, owner_E: np.ndarray, routing: Routing | None) -> np.ndarray:
        if routing is None:
            return super()._dispatched(tokens_GE, owner_E, routing)
        ranks, num_experts = tokens_GE.shape
        pair_R = np.repeat(np.arange(num_experts * ranks), self._replicas_EG.flatten())  # by expert, then by rank
        rows_R = replicas_chosen(routing.expert_TK, self._replicas_EG.sum(1), self._number_of)
        rows_GR = all_gather(rows_R.unsqueeze(0), self.group).cpu().numpy()
        sent_PG = np.zeros((num_experts * ranks, ranks), np.int64)
        np.add.at(sent_PG, pair_R, rows_GR.T)  # replicas of an expert may share a rank
        return np.ascontiguousarray(sent_PG.T).reshape(ranks, num_experts, ranks)

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        account = super().account(tokens_GE, element_size)
        gathered = 8 * int(self._replicas_EG.sum()) * (self.world_size - 1)
        return replace(account, bytes_sent=account.bytes_sent + gathered)


def replicas_chosen(
    expert_TK: torch.Tensor, count_E: np.ndarray, number_of: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """int64 [R], expert after expert: how many of these copies go to each of the count_E replicas."""
    expert_N, device = expert_TK.flatten(), expert_TK.device
    first_E, copies_E = (torch.from_numpy(array).to(device) for array in (count_E.cumsum() - count_E, count_E))
    number_N = number_of(torch.arange(len(expert_N), device=device))
    replica_N = first_E[expert_N] + number_N % copies_E[expert_N]
    return torch.zeros(int(count_E.sum()), dtype=torch.int64, device=device).index_add_(
        0, replica_N, torch.ones_like(replica_N)
    )
