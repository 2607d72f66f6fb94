"""Largest / mean rows of a rank at the paper's point, where contiguous experts leave all hot ones on rank 0."""

import numpy as np
import pytest

from systems.planners.base import Planner, imbalance, owner_of
from systems.planners.dispatch import to_owner
from systems.planners.eplb import EPLB
from systems.planners.fastermoe import FasterMoE
from systems.planners.lazarus import Lazarus
from systems.planners.placement import Packed
from systems.planners.prophet import Prophet
from systems.planners.smartmoe import SmartMoE

CONTIGUOUS_E = np.arange(128) // 32


def test_experts_that_stay(tokens_GE, contiguous_EG):
    assert imbalance(to_owner(tokens_GE, contiguous_EG, CONTIGUOUS_E)) == pytest.approx(3.66, abs=0.02)
    # Expected 4 x (4 hot + 28 cold experts' probabilities) = 1.205 of the rank with four of the 13 hot ones.
    assert imbalance(to_owner(tokens_GE, contiguous_EG, np.arange(128) % 4)) == pytest.approx(1.20, abs=0.01)


@pytest.mark.parametrize(
    ("planner", "expected", "tolerance"),
    [
        pytest.param(SmartMoE(), 1.19, 0.005, id="smartmoe"),
        pytest.param(Packed(), 1.19, 0.005, id="packed"),
        pytest.param(EPLB(0), 1.19, 0.005, id="eplb+0"),
        pytest.param(EPLB(4), 1.06, 0.005, id="eplb+4"),
        pytest.param(EPLB(32), 1.035, 0.005, id="eplb+32"),
        pytest.param(FasterMoE(), 1.013, 0.007, id="fastermoe"),
        pytest.param(Prophet(), 1.015, 0.005, id="prophet"),
        pytest.param(Prophet(1), 1.85, 0.01, id="prophet, 1 excluded"),
        pytest.param(Prophet(2), 2.75, 0.01, id="prophet, 2 excluded"),
        pytest.param(Lazarus(1.0), 3.66, 0.02, id="lazarus 1.0"),
        pytest.param(Lazarus(1.5), 2.26, 0.02, id="lazarus 1.5"),
        pytest.param(Lazarus(2.0), 1.63, 0.01, id="lazarus 2.0"),
        pytest.param(Lazarus(4.0), 1.16, 0.01, id="lazarus 4.0"),
        pytest.param(Lazarus(1.5, balanced=True), 1.02, 0.01, id="lazarus 1.5 balanced"),
    ],
)
def test_planners(planner: Planner, expected, tolerance, tokens_GE, contiguous_EG, costs):
    replicas_EG = planner.place(tokens_GE, contiguous_EG, costs)
    owner_E = CONTIGUOUS_E if isinstance(planner, (FasterMoE, Prophet)) else owner_of(replicas_EG)
    assert imbalance(planner.dispatch(tokens_GE, replicas_EG, owner_E)) == pytest.approx(expected, abs=tolerance)
