"""How vLLM chooses replicas, and what its placements cost; that it equals the dense model is in the conformance kit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from systems.base import LayerShape
from systems.moves import moves
from systems.planners.base import Costs, as_replicas
from systems.planners.eplb import EPLB
from systems.vllm_eplb import CHOICES, VllmEPLB, replicas_chosen

COSTS = Costs(1.0, 1.0, 1.0)


def test_by_hand():
    """Copies 0 to 5; expert 0 has replicas 0 and 1, expert 1 replica 2."""
    expert_TK = torch.tensor([[0, 1], [0, 1], [1, 0]])
    assert replicas_chosen(expert_TK, np.array([2, 1]), CHOICES["position"]).tolist() == [2, 1, 3]


@pytest.mark.parametrize(("choice", "fair"), [("hash", True), ("position", False)])
@pytest.mark.parametrize("copies", [2, 3, 4])
def test_shares_of_replicas(choice, fair, copies):
    """Of 8 choices a token the hot expert is the first of most, and the fourth of some: by position it is one replica's
    unless the replicas do not divide 8.
    """
    generator = torch.Generator().manual_seed(0)
    expert_TK = 1 + torch.rand(4000, 63, generator=generator).argsort(1)[:, :8]
    place_T = torch.where(torch.rand(4000, generator=generator) < 0.8, 0, 3)
    expert_TK[torch.arange(4000), place_T] = 0
    rows = replicas_chosen(expert_TK, np.array([copies] + [1] * 63), CHOICES[choice])[:copies]
    assert rows.sum() == 4000
    assert (chisquare(rows.numpy()).pvalue > 0.01) == (fair or 8 % copies > 0)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_every_copy_goes_to_a_replica_of_its_expert(seed, top_k):
    rng = np.random.default_rng(seed)
    expert_TK, count_E = torch.from_numpy(rng.integers(0, 6, (rng.integers(0, 30), top_k))), rng.integers(1, 4, 6)
    for number_of in CHOICES.values():
        rows_R = replicas_chosen(expert_TK, count_E, number_of)
        expert_R = np.repeat(np.arange(6), count_E)
        found_E = np.bincount(expert_R, rows_R, 6)
        assert found_E.tolist() == torch.bincount(expert_TK.flatten(), minlength=6).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_a_placement_is_no_worse_on_its_own_window_and_moves_nothing_if_loads_stay(seed):
    rng = np.random.default_rng(seed)
    loads_GE, planner = rng.geometric(0.01, (4, 16)), EPLB(4)
    home_EG = as_replicas(np.arange(16) // 4, 4)
    replicas_EG = planner.place(loads_GE, home_EG, COSTS)

    def most(holds_EG: np.ndarray) -> float:
        return (holds_EG * (loads_GE.sum(0) / holds_EG.sum(1))[:, None]).sum(0).max()

    assert most(replicas_EG) <= most(home_EG)
    assert not moves(replicas_EG, planner.place(loads_GE, replicas_EG, COSTS)).any()


def test_unknown_choices_are_named():
    options = VllmEPLB.every_option(planner=EPLB(0), choice="random")
    with pytest.raises(ValueError, match=r"system\.choice is 'random'; it must be one of hash, position"):
        VllmEPLB.check(LayerShape(num_experts=8, d_model=4, d_ff=8, max_tokens=10), 2, **options)
