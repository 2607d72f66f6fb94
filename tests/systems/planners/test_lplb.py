import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from systems.planners import lplb
from systems.planners.base import Costs, as_replicas, imbalance, owner_of, rows_per_rank
from systems.planners.dispatch import to_owner
from systems.planners.eplb import EPLB
from systems.planners.lplb import LPLB, shares

COSTS = Costs(1.0, 1.0, 1.0)


def least(load_E: np.ndarray, holds_EG: np.ndarray) -> float:
    """The smallest largest load in fractions of tokens, by a solver of others."""
    expert_C, rank_C = np.nonzero(holds_EG)
    equal = (expert_C == np.arange(len(load_E))[:, None]).astype(float)
    above = np.column_stack([rank_C == np.arange(holds_EG.shape[1])[:, None], -np.ones(holds_EG.shape[1])])
    cost_C = np.append(np.zeros(len(expert_C)), 1)
    found = linprog(cost_C, above, np.zeros(len(above)), np.column_stack([equal, np.zeros(len(load_E))]), load_E)
    return found.fun


@st.composite
def layers(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, and holders by the counts of another batch, of 8 to 16 experts on 4 ranks with up to 8 more replicas."""
    num_experts, seed = 4 * draw(st.integers(2, 4)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    popularity_E = rng.lognormal(0, draw(st.sampled_from([0.3, 1.0, 2.0])), num_experts)
    tokens_GE, past_GE = (rng.multinomial(5000, popularity_E / popularity_E.sum(), size=4) for _ in range(2))
    replicas_EG = EPLB(4 * draw(st.integers(0, 2))).place(past_GE, np.ones((num_experts, 4), np.int64), COSTS)
    return tokens_GE, replicas_EG, owner_of(replicas_EG)


@settings(deadline=None, max_examples=25)  # the other solver takes its time
@given(layers())
def test_plans_are_legal_and_no_better_than_the_best(layer):
    tokens_GE, replicas_EG, owner_E = layer
    best = least(tokens_GE.sum(0), replicas_EG > 0)
    for planner in (LPLB(), LPLB(exact=True)):
        sent_GEG = planner.dispatch(tokens_GE, replicas_EG, owner_E)
        planner.check_sent(sent_GEG, tokens_GE, replicas_EG)
        assert sent_GEG.min() >= 0
        most = rows_per_rank(sent_GEG).max()
        assert most >= best - 1e-6
        assert not planner.exact or most == np.ceil(best - 1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_within_5_percent_of_the_best_where_there_are_many_replicas(seed):
    """64 experts on 8 ranks, 32 replicas placed by another batch; even shares are further away."""
    rng = np.random.default_rng(seed)
    popularity_E = rng.lognormal(0, 0.8, 64)
    share_E, past_E = (weight / weight.sum() for weight in (popularity_E * rng.lognormal(0, 0.3, (2, 64))))
    tokens_GE, past_GE = rng.multinomial(8192, share_E, size=8), rng.multinomial(8192, past_E, size=8)
    replicas_EG = LPLB(32).place(past_GE, as_replicas(np.arange(64) // 8, 8), COSTS)
    given_ = tokens_GE, replicas_EG, owner_of(replicas_EG)
    found, even = (imbalance(planner.dispatch(*given_)) for planner in (LPLB(), EPLB()))
    assert found <= 1.05 * least(tokens_GE.sum(0), replicas_EG > 0) / tokens_GE.sum() * 8 < even


def test_shares_by_hand():
    """Expert 0 on both ranks, 6 tokens; rank 0 has 3 more and rank 1 has 1: 2 and 4 of the six make 5 and 5."""
    assert shares(np.array([6, 3, 1]), np.array([[1, 1], [1, 0], [0, 1]])) == pytest.approx(
        [1 / 3, 2 / 3, 1, 1], abs=0.01
    )


def test_each_rank_sends_its_share_rounded_down_and_what_is_left_meets_the_quotas():
    tokens_GE, replicas_EG = np.array([[7, 0, 0], [5, 6, 2]]), np.array([[1, 1], [1, 0], [0, 1]])
    sent_GEG = LPLB(exact=True).dispatch(tokens_GE, replicas_EG, np.array([0, 0, 1]))
    # 10 of 20 each: 4 of expert 0's 12 tokens to rank 0. floor(7 / 3) + 1 of those left, floor(5 / 3).
    assert sent_GEG[:, 0].tolist() == [[3, 4], [1, 4]]
    assert rows_per_rank(sent_GEG).tolist() == [10, 10]


def test_shares_are_even_where_the_solver_has_not_converged(monkeypatch):
    load_E, holds_EG = np.array([600, 300, 100]), np.array([[1, 1], [1, 0], [0, 1]])
    for name, value in (("STEPS", 1), ("RESIDUAL", 0.0)):
        with monkeypatch.context() as patch:
            patch.setattr(lplb, name, value)
            assert shares(load_E, holds_EG).tolist() == [0.5, 0.5, 1, 1]
    assert shares(load_E, holds_EG)[0] < 0.4


def test_without_replicas_it_is_the_placement_alone(tokens_GE, contiguous_EG):
    for planner in (LPLB(0), LPLB(0, exact=True)):
        replicas_EG = planner.place(tokens_GE, contiguous_EG, COSTS)
        owner_E = owner_of(replicas_EG)
        assert (planner.dispatch(tokens_GE, replicas_EG, owner_E) == to_owner(tokens_GE, replicas_EG, owner_E)).all()


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"planner\.exact is 1; it must be true or false"):
        LPLB(exact=1)
