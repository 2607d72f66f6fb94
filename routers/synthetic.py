"""The paper's skewed router: every token draws its expert from one multinomial."""

import math
from typing import Any

import numpy as np

from routers.drawn import MultinomialRouter
from routers.options import check_not_negative, check_whole_number


def skewed_probabilities(num_experts: int, alpha: float, num_skewed: int) -> np.ndarray:
    """float64 [E]: p_i proportional to 1/E + alpha for the first `num_skewed` experts, 1/E for the others.

    Source: MoEShard paper, section 4.1 (alpha_r and k_r). Raises ValueError outside 0 <= k_r <= E, alpha >= 0.
    """
    if not 0 <= num_skewed <= num_experts:
        raise ValueError(f"router.num_skewed is {num_skewed}; it must be between 0 and num_experts ({num_experts})")
    check_not_negative("alpha", alpha)
    weights_E = np.full(num_experts, 1 / num_experts)
    weights_E[:num_skewed] += alpha
    return weights_E / weights_E.sum()


def count_skewed(num_experts: int, num_skewed: int | None, skewed_share: float | None) -> int:
    """k_r as a number where one is given, else as a share of E rounded up as the authors do (10 % of 128 is 13).

    Raises ValueError unless the number is a whole one or the share is between 0 and 1.
    """
    if num_skewed is not None:
        check_whole_number("num_skewed", num_skewed, 0)
        return num_skewed
    if skewed_share is None or not 0 <= skewed_share <= 1:
        raise ValueError(f"router.skewed_share is {skewed_share}; it must be between 0 and 1")
    return math.ceil(round(skewed_share * num_experts, 9))


class SyntheticRouter(MultinomialRouter):
    """Top-1 routing drawn from `skewed_probabilities`. With `permute_hot` the hot ids are not 0..k_r-1 but seeded."""

    def __init__(
        self,
        *,
        num_experts: int,
        alpha: float = 0.6,
        num_skewed: int | None = None,
        skewed_share: float | None = 0.1,
        permute_hot: bool = False,
        **workload: Any,
    ) -> None:
        self.num_skewed = count_skewed(num_experts, num_skewed, skewed_share)
        probabilities_E = skewed_probabilities(num_experts, alpha, self.num_skewed)
        super().__init__(probabilities_E, num_experts=num_experts, permute_hot=permute_hot, **workload)
