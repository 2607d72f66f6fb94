"""Lognormal loads of a given coefficient of variation: imbalance as one number, whatever the number of experts."""

import math
from typing import Any, cast

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from routers.drawn import MultinomialRouter
from routers.options import check_not_negative

# So steep that all of the load is on one expert, for any number of experts that fits a machine.
STEEPEST = 1e4


def lognormal_probabilities(num_experts: int, cv: float) -> np.ndarray:
    """float64 [E], falling: the lognormal distribution's quantiles with standard deviation / mean exactly `cv`.

    Fixed quantiles (i + 1/2)/E instead of a random sample make the shape depend on E and cv alone; sigma is solved
    for. Raises ValueError outside 0 <= cv <= sqrt(E - 1), which is one expert having all the load.
    """
    check_not_negative("cv", cv)
    if cv > math.sqrt(num_experts - 1):
        raise ValueError(
            f"router.cv is {cv}; it must be at most sqrt(num_experts - 1) ({math.sqrt(num_experts - 1):.4g})"
        )
    normal_E = norm.isf((np.arange(num_experts) + 0.5) / num_experts)
    reachable = min(cv, _variation(normal_E, STEEPEST))  # sqrt(E - 1) but for rounding
    sigma = brentq(lambda sigma: _variation(normal_E, sigma) - reachable, 0, STEEPEST, xtol=1e-14)
    weights_E = _weights(normal_E, cast(float, sigma))
    return weights_E / weights_E.sum()


def _weights(normal_E: np.ndarray, sigma: float) -> np.ndarray:
    return np.exp(sigma * (normal_E - normal_E.max()))


def _variation(normal_E: np.ndarray, sigma: float) -> float:
    weights_E = _weights(normal_E, sigma)
    return float(weights_E.std() / weights_E.mean())


class LognormalRouter(MultinomialRouter):
    """Top-1 routing drawn from `lognormal_probabilities`; by default it is seeded which expert gets which share."""

    def __init__(self, *, num_experts: int, cv: float = 1.0, permute_hot: bool = True, **workload: Any) -> None:
        probabilities_E = lognormal_probabilities(num_experts, cv)
        super().__init__(probabilities_E, num_experts=num_experts, permute_hot=permute_hot, **workload)
