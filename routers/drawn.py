"""What routers share that look at no token: seeded draws, made before they are asked for, and equal gate weights.

Letters in names: T tokens of this rank, E experts, K experts per token, D d_model.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from routers.base import Routing
from routers.options import check_switch
from routers.sampling import at_most, deal, inclusion, one_after_another
from routers.scores import scores_of

SCORES = 0x5C0E  # the purpose of the random numbers that scores are made of
PROFILE_FROM = 1_000_000  # iterations from here on are drawn for placements that are made beforehand, and never timed


class DrawnRouter(ABC):
    """K different experts a token with gate weight 1/K each; 1 of top-1, as in the paper's synthetic router.

    Draws are counter-based: numpy's Philox keyed by (seed, layer, iteration, rank), so they are the same bytes on
    every device and for every system, and differ between ranks. `scored` is set where a system asks for scores: they
    are then drawn too, so that they agree with the experts.
    """

    scored = False

    def __init__(
        self,
        *,
        num_experts: int,
        rank: int,
        seed: int,
        top_k: int = 1,
        moe_blocks: Sequence[int] = (),
        classifier: object = None,
        sequences: int = 1,
        regime: str = "encode",
    ) -> None:
        self.num_experts, self.rank, self.seed, self.top_k = num_experts, rank, seed, top_k
        self._drawn: dict[tuple[int, int], Routing] = {}

    @abstractmethod
    def draw(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        """int64 [T, K]: the experts of each token."""

    @abstractmethod
    def intended(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray | None:
        """float64 [E]: how many of this rank's token copies each expert is asked to get; None where that is drawn."""

    def generator(self, *purpose: int, layer: int, iteration: int) -> np.random.Generator:
        """The random numbers of one draw; of several in a layer and iteration each has a purpose of its own."""
        counter = np.random.SeedSequence([self.seed, layer, iteration, self.rank, *purpose])
        return np.random.Generator(np.random.Philox(counter))

    def prefetch(self, num_tokens: int, *, layer: int, iteration: int, like: torch.Tensor) -> None:
        """Draw for one pass; what was drawn for others is forgotten."""
        self._drawn = {key: routing for key, routing in self._drawn.items() if key[1] == iteration}
        self._drawn[layer, iteration] = self._routing(num_tokens, layer, iteration, like)

    def route(self, x_TD: torch.Tensor, *, layer: int, iteration: int, chosen: Routing | None = None) -> Routing:
        routing = self._drawn.get((layer, iteration)) or self._routing(len(x_TD), layer, iteration, x_TD)
        assert len(routing.expert_TK) == len(x_TD)
        return routing

    def _routing(self, num_tokens: int, layer: int, iteration: int, like: torch.Tensor) -> Routing:
        drawn_TK = np.ascontiguousarray(self.draw(num_tokens, layer=layer, iteration=iteration))
        expert_TK = torch.from_numpy(drawn_TK).to(like.device)
        weight_TK = torch.full(drawn_TK.shape, 1 / self.top_k, dtype=like.dtype, device=like.device)
        if not self.scored:
            return Routing(expert_TK, weight_TK)
        generator = self.generator(SCORES, layer=layer, iteration=iteration)
        score_TE = torch.from_numpy(scores_of(drawn_TK, self.num_experts, generator))
        return Routing(expert_TK, weight_TK, score_TE.to(like.device))


class MultinomialRouter(DrawnRouter):
    """Every token draws its experts from one distribution p_E [E], one after another, each of those it has not yet.

    With `permute_hot` the probabilities go to the experts in a seeded random order, the same on every rank; else in
    the order given, hot experts first, which contiguous expert parallelism would place all on one rank.
    """

    def __init__(self, probabilities_E: np.ndarray, *, seed: int, permute_hot: bool, **workload: Any) -> None:
        super().__init__(seed=seed, **workload)
        check_switch("permute_hot", permute_hot)
        order = np.random.default_rng(seed).permutation if permute_hot else np.asarray
        self.probabilities_E = order(probabilities_E)
        if (possible := np.count_nonzero(probabilities_E)) < self.top_k:
            raise ValueError(
                f"model.top_k is {self.top_k} and the router gives tokens to {possible} of the experts; a token's "
                "experts are different ones"
            )

    def probabilities(self, *, layer: int, iteration: int) -> np.ndarray:
        """float64 [E]: the distribution of one draw."""
        return self.probabilities_E

    def draw(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        probabilities_E = self.probabilities(layer=layer, iteration=iteration)
        generator = self.generator(layer=layer, iteration=iteration)
        if self.top_k > 1:
            return one_after_another(probabilities_E[None], num_tokens, self.top_k, generator)
        # Rounding may leave the last sum a little below 1.
        expert_T = np.searchsorted(np.cumsum(probabilities_E), generator.random(num_tokens), side="right")
        return np.minimum(expert_T, self.num_experts - 1)[:, None]

    def intended(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        probabilities_E = self.probabilities(layer=layer, iteration=iteration)
        return num_tokens * (inclusion(probabilities_E, self.top_k) if self.top_k > 1 else probabilities_E)


class CountedRouter(DrawnRouter):
    """Every expert gets exactly the number of copies that `counts` says; which tokens those are of is drawn.

    An expert that would get more copies than there are tokens gets one of each, and the others what is beyond.
    """

    @abstractmethod
    def counts(self, num_copies: int, *, layer: int, iteration: int) -> np.ndarray:
        """int64 [E]: token copies of this rank per expert, `num_copies` in all."""

    def _dealt(self, num_tokens: int, layer: int, iteration: int) -> np.ndarray:
        return at_most(self.counts(num_tokens * self.top_k, layer=layer, iteration=iteration), num_tokens)

    def draw(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        counts_E = self._dealt(num_tokens, layer, iteration)
        return deal(counts_E, num_tokens, self.generator(layer=layer, iteration=iteration))

    def intended(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        return self._dealt(num_tokens, layer, iteration).astype(np.float64)
