from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs, as_replicas, rows_per_rank
from systems.planners.fastermoe import FasterMoE

HOME_E = np.array([0, 0, 1, 1])
LOADS_GE = np.array([[6, 2, 1, 1], [6, 0, 1, 1]])  # 14 rows on rank 0, 4 on rank 1


def shadowed(loads_GE: np.ndarray, costs: Costs, owner_E: np.ndarray = HOME_E) -> list[int]:
    replicas_EG = FasterMoE().place(loads_GE, as_replicas(owner_E, len(loads_GE)), costs)
    assert set(replicas_EG.sum(1)) <= {1, len(loads_GE)}
    return np.flatnonzero(replicas_EG.all(1)).tolist()


def test_a_shadow_that_pays_by_hand():
    # Expert 0 everywhere: 8 and 10 rows and one broadcast, 13 < 14. Any more gains nothing.
    assert shadowed(LOADS_GE, Costs(1, 0, 3)) == [0]
    assert shadowed(LOADS_GE, Costs(1, 0, 4)) == []  # 14 is not less than 14
    # Exchanges alone: 2 x 6 rows come to rank 0; then 2 x 2 to rank 1, which a second shadow does not change.
    assert shadowed(LOADS_GE, Costs(0, 1, 3)) == [0]
    assert shadowed(LOADS_GE, Costs(0, 1, 8)) == []


def test_dispatch_by_hand():
    replicas_EG = FasterMoE().place(LOADS_GE, as_replicas(HOME_E, 2), Costs(1, 0, 3))
    sent_GEG = FasterMoE().dispatch(LOADS_GE, replicas_EG, HOME_E)
    assert sent_GEG[0].tolist() == [[6, 0], [2, 0], [0, 1], [0, 1]]
    assert sent_GEG[1].tolist() == [[0, 6], [0, 0], [0, 1], [0, 1]]


def test_it_ends_at_the_first_expert_that_does_not_pay():
    # The most popular expert, 2, is on the lighter rank and used there alone. Shadowing 0 would pay.
    loads_GE = np.array([[3, 3, 0, 0], [3, 3, 7, 0]])
    assert shadowed(loads_GE, Costs(1, 0, 1)) == []
    assert shadowed(loads_GE * [1, 1, 0, 0], Costs(1, 0, 1)) == [0, 1]


def test_uniform_load_shadows_nothing(costs):
    assert shadowed(np.full((4, 8), 1000), costs, np.arange(8) // 2) == []


def test_one_rank_has_nothing_to_shadow(costs):
    assert FasterMoE().place(np.array([[900, 0]]), np.ones((2, 1), np.int64), costs).tolist() == [[1], [1]]


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(1, 8), st.sampled_from([0, 2, 20, 200]), st.integers(0, 2**32 - 1))
def test_a_prefix_of_the_load_order_is_shadowed_and_every_step_lowers_the_cost(ranks, num_experts, move, seed):
    rng = np.random.default_rng(seed)
    loads_GE, owner_E = rng.geometric(0.02, (ranks, num_experts)), rng.integers(0, ranks, num_experts)
    costs, planner = Costs(1.0, 0.5, move), FasterMoE()
    popular = np.argsort(-loads_GE.sum(0), kind="stable").tolist()

    def seconds(num_shadows: int) -> float:
        replicas_EG = as_replicas(owner_E, ranks)
        replicas_EG[popular[:num_shadows]] = 1
        sent_GEG = planner.dispatch(loads_GE, replicas_EG, owner_E)
        rows_G = rows_per_rank(sent_GEG)
        received_G = rows_G - np.einsum("geg->g", sent_GEG)
        return rows_G.max() + 2 * 0.5 * received_G.max() + num_shadows * move

    found = shadowed(loads_GE, costs, owner_E)
    assert sorted(popular[: len(found)]) == found
    steps = [seconds(number) for number in range(num_experts + 1)]
    assert all(after < before for before, after in pairwise(steps[: len(found) + 1]))
    assert len(found) == num_experts or steps[len(found) + 1] >= steps[len(found)]


@pytest.mark.parametrize("gb_per_s", [250, 25])
def test_the_papers_hot_experts_are_shadowed(gb_per_s, tokens_GE, contiguous_EG):
    costs = Costs(9.44e6 / 60e12, 3072 / (gb_per_s * 1e9), 18.87e6 / (gb_per_s * 1e9))
    replicas_EG = FasterMoE().place(tokens_GE, contiguous_EG, costs)
    assert np.flatnonzero(replicas_EG.all(1)).tolist() == list(range(13))
