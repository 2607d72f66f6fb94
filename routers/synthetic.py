"""The paper's skewed router: every token draws its expert from one multinomial."""

import math

import numpy as np
import torch

from routers.base import Routing


def skewed_probabilities(num_experts: int, alpha: float, num_skewed: int) -> np.ndarray:
    """float64 [E]: p_i proportional to 1/E + alpha for the first `num_skewed` experts, 1/E for the others.

    Source: MoEShard paper, section 4.1 (alpha_r and k_r). Raises ValueError outside 0 <= k_r <= E, alpha >= 0.
    """
    if not 0 <= num_skewed <= num_experts:
        raise ValueError(f"router.num_skewed is {num_skewed}; it must be between 0 and num_experts ({num_experts})")
    if alpha < 0:
        raise ValueError(f"router.alpha is {alpha}; it must not be negative")
    weights_E = np.full(num_experts, 1 / num_experts)
    weights_E[:num_skewed] += alpha
    return weights_E / weights_E.sum()


def count_skewed(num_experts: int, num_skewed: int | None, skewed_share: float | None) -> int:
    """k_r as a number where one is given, else as a share of E rounded up as the authors do (10 % of 128 is 13).

    Raises ValueError unless the share is between 0 and 1.
    """
    if num_skewed is not None:
        return num_skewed
    if skewed_share is None or not 0 <= skewed_share <= 1:
        raise ValueError(f"router.skewed_share is {skewed_share}; it must be between 0 and 1")
    return math.ceil(round(skewed_share * num_experts, 9))


class SyntheticRouter:
    """Top-1 routing drawn from `skewed_probabilities`, with gate weight 1 as in the paper.

    Draws are counter-based: numpy's Philox keyed by (seed, layer, iteration, rank), so they are the same bytes on
    every device and for every system, and differ between ranks. With `permute_hot` the hot experts are a seeded
    random set instead of ids 0..k_r-1, which contiguous expert parallelism would place all on one rank.
    """

    def __init__(
        self,
        *,
        num_experts: int,
        rank: int,
        seed: int,
        alpha: float = 0.6,
        num_skewed: int | None = None,
        skewed_share: float | None = 0.1,
        permute_hot: bool = False,
        classifier: object = None,
    ) -> None:
        skewed = count_skewed(num_experts, num_skewed, skewed_share)
        self.probabilities_E = skewed_probabilities(num_experts, alpha, skewed)
        if permute_hot:
            self.probabilities_E = np.random.default_rng(seed).permutation(self.probabilities_E)
        self._cumulative_E = np.cumsum(self.probabilities_E)
        self._seed, self._rank = seed, rank
        self._drawn: dict[tuple[int, int], Routing] = {}

    def draw(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        """int64 [T]: the expert of each token."""
        counter = np.random.SeedSequence([self._seed, layer, iteration, self._rank])
        uniform_T = np.random.Generator(np.random.Philox(counter)).random(num_tokens)
        expert_T = np.searchsorted(self._cumulative_E, uniform_T, side="right")
        return np.minimum(expert_T, len(self._cumulative_E) - 1)

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
