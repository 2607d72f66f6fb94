import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs, as_replicas, rows_per_rank
from systems.planners.fastermoe import FasterMoE
from systems.planners.prophet import Prophet

ROWS_ALONE = Costs(row_s=1, move_row_s=0, move_expert_s=3)


def test_by_hand():
    # Rank 0 has 14 rows, rank 1 4. Expert 0 on both: 8 and 10 rows, 13 with its transfer. Then expert 2 of rank 1:
    # 9 and 9 rows, 15 with two transfers, which is seen and not taken.
    loads_GE = np.array([[6, 2, 1, 1], [6, 0, 1, 1]])
    replicas_EG = Prophet().place(loads_GE, as_replicas(np.array([0, 0, 1, 1]), 2), ROWS_ALONE)
    assert replicas_EG.tolist() == [[1, 1], [1, 0], [0, 1], [0, 1]]


def test_it_goes_on_past_a_transfer_that_does_not_pay_alone():
    # Two ranks of 20 rows: the first transfer leaves 25 on the other, both together leave 10 everywhere.
    loads_GE, owner_EG = np.tile([5, 5, 0, 0], (4, 1)), np.eye(4, dtype=np.int64)
    assert Prophet().place(loads_GE, owner_EG, ROWS_ALONE)[:2].tolist() == [[1] * 4, [1] * 4]
    assert (FasterMoE().place(loads_GE, owner_EG, ROWS_ALONE) == owner_EG).all()


def test_the_ranks_with_the_fewest_tokens_are_excluded_but_not_the_owner():
    loads_GE, owner_EG = np.array([[0, 0, 0], [4, 0, 0], [9, 0, 0]]), np.eye(3, dtype=np.int64)
    planner = Prophet(excluded=1)
    replicas_EG = planner.place(loads_GE, owner_EG, ROWS_ALONE)
    assert replicas_EG.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert planner.dispatch(loads_GE, replicas_EG, np.arange(3))[:, 0].tolist() == [[0, 0, 0], [4, 0, 0], [0, 0, 9]]


def test_with_all_others_excluded_nothing_is_sent():
    loads_GE, owner_EG = np.array([[0, 0], [9, 0]]), np.eye(2, dtype=np.int64)
    assert (Prophet(excluded=1).place(loads_GE, owner_EG, ROWS_ALONE) == owner_EG).all()


def test_the_search_ends_at_the_share_that_is_asked_for():
    # 12 and 8 rows differ by 0.4 of their mean; expert 0 on both ranks leaves 6 + 6 and 8 - 2: equal.
    loads_GE, owner_EG = np.array([[10, 4], [2, 4]]), np.eye(2, dtype=np.int64)
    costs = Costs(row_s=1, move_row_s=0, move_expert_s=1)
    assert Prophet(stop_share=0.4).place(loads_GE, owner_EG, costs).tolist() == [[1, 1], [0, 1]]
    assert (Prophet(stop_share=0.41).place(loads_GE, owner_EG, costs) == owner_EG).all()


def test_options_are_checked(costs):
    with pytest.raises(ValueError, match=r"planner.excluded is -1; it must be a whole number of at least 0"):
        Prophet(excluded=-1)
    with pytest.raises(ValueError, match=r"planner.stop_share is nan; it must not be negative, infinite or NaN"):
        Prophet(stop_share=float("nan"))
    with pytest.raises(ValueError, match=r"planner.excluded is 2; on 2 ranks it must be at most 1"):
        Prophet(excluded=2).place(np.ones((2, 2)), np.eye(2, dtype=np.int64), costs)


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(1, 8), st.integers(0, 4), st.sampled_from([0, 2, 20]), st.integers(0, 2**32 - 1))
def test_the_plan_costs_no_more_than_none(ranks, num_experts, excluded, move, seed):
    rng = np.random.default_rng(seed)
    excluded = min(excluded, ranks - 1)
    loads_GE, owner_E = rng.geometric(0.02, (ranks, num_experts)), rng.integers(0, ranks, num_experts)
    planner, current_EG = Prophet(excluded), as_replicas(owner_E, ranks)
    replicas_EG = planner.place(loads_GE, current_EG, Costs(1, 1, move))
    sent = np.flatnonzero((replicas_EG > current_EG).any(1))

    def seconds(placed_EG: np.ndarray) -> float:
        sent_GEG = planner.dispatch(loads_GE, placed_EG, owner_E)
        rows_G = rows_per_rank(sent_GEG)
        return rows_G.max() + 2 * (rows_G - np.einsum("geg->g", sent_GEG)).max()

    assert set(replicas_EG[sent].sum(1)) <= {ranks - excluded}
    assert (replicas_EG >= current_EG).all()
    assert seconds(replicas_EG) + len(sent) * move <= seconds(current_EG)


def test_with_none_excluded_it_sends_what_fastermoe_broadcasts_at_the_papers_point(costs, tokens_GE, contiguous_EG):
    replicas_EG = Prophet().place(tokens_GE, contiguous_EG, costs)
    assert (replicas_EG == FasterMoE().place(tokens_GE, contiguous_EG, costs)).all()
    assert np.flatnonzero(replicas_EG.all(1)).tolist() == list(range(13))
