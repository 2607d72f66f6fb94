"""Lynx: a batch in decoding keeps to the experts that matter to it, so that fewer weights are read.

Source: "Lynx: Enabling Efficient MoE Inference through Dynamic Batch-Aware Expert Selection" (arXiv:2411.08982), its
later versions' affinity binning. The first choice of every token stays. Not confirmed, and ours: how wide a bin is and
how many there are (`width`, `bins`), and the threshold of an expert's score (one vote of the first bin); a batch counts
as bound by memory where an expert's rows take less time to compute than its weights to read.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from routers.base import Routing
from systems.base import Account, LayerShape, Reference
from systems.costs import costs_of
from systems.counted import CountedExpertParallel, gate_scores
from systems.planners.base import Rates

ENOUGH = 1 - 1e-9  # a vote of the first bin, or as many of the second as there are tokens, whose sum is rounded
WHEN = ("memory_bound", "always")


class Lynx(CountedExpertParallel):
    """Of top-1 routing it changes nothing.

    width, bins: a choice falls into bin ceil((best score - score) / width), the last one at most, so that the first bin
    has best choices alone. when: `memory_bound`, in batches whose mean expert is read for longer than it computes, or
    `always`.
    """

    exactness = "approximate"
    own_rule = True

    def __init__(
        self, *, width: float = 1.0, bins: int = 6, when: str = "memory_bound", rates: Rates, **layer: Any
    ) -> None:
        super().__init__(**layer)
        self._width, self._bins = width, bins
        costs = costs_of(self.shape, self._whole[0].element_size(), rates)
        most_rows = self.shape.max_tokens * self.shape.top_k * self.world_size / self.shape.num_experts
        self.active = when == "always" or most_rows * costs.row_s < costs.read_expert_s

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, width: float, bins: int, when: str, **_: Any) -> None:
        super().check(shape, world_size)
        if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < float("inf"):
            raise ValueError(f"system.width is {width!r}; it must be a positive number")
        if type(bins) is not int or bins < 1:
            raise ValueError(f"system.bins is {bins!r}; it must be a whole number of at least 1")
        if when not in WHEN:
            raise ValueError(f"system.when is {when!r}; it must be one of {', '.join(WHEN)}")

    @classmethod
    def needs(cls, **_: Any) -> frozenset[str]:
        return frozenset({"rates", "scores"})

    def choose(self, routing: Routing) -> tuple[Routing, torch.Tensor]:
        if self.active and self.shape.top_k > 1:
            score_E = votes(routing, self._width, self._bins, self.shape.max_tokens * self.world_size)
            dist.all_reduce(score_E, group=self.group)
            routing = kept_to(routing, score_E >= ENOUGH)
        return super().choose(routing)

    def expected(self, x_TD: torch.Tensor, routing: Routing, dense: Reference) -> torch.Tensor:
        """The dense model with the experts that were taken instead."""
        chosen = self.plan.routing
        return dense.forward(x_TD, Routing(chosen.expert_TK, chosen.weight_TK.to(x_TD.dtype)))

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        voting = self.active and self.shape.top_k > 1
        scores = 16 * self.shape.num_experts * (self.world_size - 1) / self.world_size
        account = super().account(tokens_GE, element_size)
        return replace(account, bytes_sent=account.bytes_sent + (scores if voting else 0))


def votes(routing: Routing, width: float, bins: int, most_tokens: int) -> torch.Tensor:
    """float64 [E]: what the copies of one rank give each expert: 1 of the first bin, and of each further one so much
    less that it takes all of the batch's, of most_tokens, to be worth one of the bin before.
    """
    logits_TE = gate_scores(routing).double()
    chosen_TK = logits_TE.gather(1, routing.expert_TK)
    bin_TK = ((chosen_TK.amax(1, keepdim=True) - chosen_TK) / width).ceil().clamp(max=bins - 1)
    worth_TK = torch.pow(float(most_tokens), -bin_TK)
    return torch.zeros_like(logits_TE[:1]).sum(0).index_add_(0, routing.expert_TK.flatten(), worth_TK.flatten())


def kept_to(routing: Routing, active_E: torch.Tensor) -> Routing:
    """Choices outside `active_E` become the token's best other experts inside, as far as there are any; a token that is
    changed shares its weight by the softmax of its experts' scores, others stay as they are.
    """
    logits_TE, expert_TK = gate_scores(routing), routing.expert_TK
    top_k = expert_TK.shape[1]
    leaves_TK = ~active_E[expert_TK]
    free_TE = logits_TE.masked_fill(~active_E, -torch.inf).scatter(1, expert_TK, -torch.inf)
    score_TK, other_TK = free_TE.topk(top_k, 1)  # as many as may be wanted, best first
    place_TK = (leaves_TK.cumsum(1) - 1).clamp(min=0)
    leaves_TK = leaves_TK & (score_TK.gather(1, place_TK) > -torch.inf)
    taken_TK = torch.where(leaves_TK, other_TK.gather(1, place_TK), expert_TK)
    share_TK = logits_TE.gather(1, taken_TK).softmax(1).to(routing.weight_TK.dtype)
    shared_TK = share_TK * routing.weight_TK.sum(1, keepdim=True)
    weight_TK = torch.where(leaves_TK.any(1, keepdim=True), shared_TK, routing.weight_TK)
    return Routing(taken_TK, weight_TK, routing.logits_TE, routing.earlier)
