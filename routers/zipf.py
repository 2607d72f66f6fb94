"""Loads that fall as a power of the rank: the long tail that skews of real routers are often likened to."""

from typing import Any

import numpy as np

from routers.drawn import MultinomialRouter
from routers.options import check_not_negative


def zipf_probabilities(num_experts: int, exponent: float) -> np.ndarray:
    """float64 [E], falling: p_i proportional to (i + 1)^-exponent. Raises ValueError for a negative exponent."""
    check_not_negative("exponent", exponent)
    weights_E = np.exp(-exponent * np.log(np.arange(1, num_experts + 1)))
    return weights_E / weights_E.sum()


class ZipfRouter(MultinomialRouter):
    """Top-1 routing drawn from `zipf_probabilities`."""

    def __init__(self, *, num_experts: int, exponent: float = 1.0, permute_hot: bool = False, **workload: Any) -> None:
        probabilities_E = zipf_probabilities(num_experts, exponent)
        super().__init__(probabilities_E, num_experts=num_experts, permute_hot=permute_hot, **workload)
