"""What routers share that look at no token: seeded draws, kept until they are asked for, and gate weight 1.

Letters in names: T tokens of this rank, E experts, K experts per token (1 here), D d_model.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from routers.base import Routing
from routers.options import check_switch

PROFILE_FROM = 1_000_000  # iterations from here on are drawn for placements that are made beforehand, and never timed


class DrawnRouter(ABC):
    """Top-1 routing with gate weight 1, as in the paper's synthetic router.

    Draws are counter-based: numpy's Philox keyed by (seed, layer, iteration, rank), so they are the same bytes on
    every device and for every system, and differ between ranks.
    """

    def __init__(
        self,
        *,
        num_experts: int,
        rank: int,
        seed: int,
        moe_blocks: Sequence[int] = (),
        classifier: object = None,
    ) -> None:
        self.num_experts, self.rank, self.seed = num_experts, rank, seed
        self._drawn: dict[tuple[int, int], Routing] = {}

    @abstractmethod
    def draw(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        """int64 [T]: the expert of each token."""

    @abstractmethod
    def intended(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        """float64 [E]: how many of this rank's tokens each expert is asked to get."""

    def generator(self, *, layer: int, iteration: int) -> np.random.Generator:
        """The random numbers of one draw."""
        counter = np.random.SeedSequence([self.seed, layer, iteration, self.rank])
        return np.random.Generator(np.random.Philox(counter))

    def prefetch(self, num_tokens: int, *, layer: int, iteration: int, like: torch.Tensor) -> None:
        expert_T = torch.from_numpy(self.draw(num_tokens, layer=layer, iteration=iteration))
        weight_TK = torch.ones(num_tokens, 1, dtype=like.dtype, device=like.device)
        self._drawn[layer, iteration] = Routing(expert_T.to(like.device).unsqueeze(1), weight_TK)

    def route(self, x_TD: torch.Tensor, *, layer: int, iteration: int) -> Routing:
        if (layer, iteration) not in self._drawn:
            self.prefetch(len(x_TD), layer=layer, iteration=iteration, like=x_TD)
        routing = self._drawn[layer, iteration]
        assert len(routing.expert_TK) == len(x_TD)
        return routing


class MultinomialRouter(DrawnRouter):
    """Every token draws its expert from one distribution p_E [E].

    With `permute_hot` the probabilities go to the experts in a seeded random order, the same on every rank; else in
    the order given, hot experts first, which contiguous expert parallelism would place all on one rank.
    """

    def __init__(self, probabilities_E: np.ndarray, *, seed: int, permute_hot: bool, **workload: Any) -> None:
        super().__init__(seed=seed, **workload)
        check_switch("permute_hot", permute_hot)
        order = np.random.default_rng(seed).permutation if permute_hot else np.asarray
        self.probabilities_E = order(probabilities_E)

    def probabilities(self, *, layer: int, iteration: int) -> np.ndarray:
        """float64 [E]: the distribution of one draw."""
        return self.probabilities_E

    def draw(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        cumulative_E = np.cumsum(self.probabilities(layer=layer, iteration=iteration))
        uniform_T = self.generator(layer=layer, iteration=iteration).random(num_tokens)
        # Rounding may leave the last sum a little below 1.
        return np.minimum(np.searchsorted(cumulative_E, uniform_T, side="right"), self.num_experts - 1)

    def intended(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        return num_tokens * self.probabilities(layer=layer, iteration=iteration)


class CountedRouter(DrawnRouter):
    """Every expert gets exactly the number of tokens that `counts` says; which tokens those are is drawn."""

    @abstractmethod
    def counts(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        """int64 [E]: tokens of this rank per expert, `num_tokens` in all."""

    def draw(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        counts_E = self.counts(num_tokens, layer=layer, iteration=iteration)
        expert_T = np.repeat(np.arange(self.num_experts), counts_E)
        return self.generator(layer=layer, iteration=iteration).permutation(expert_T)

    def intended(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        return self.counts(num_tokens, layer=layer, iteration=iteration).astype(np.float64)
