"""What holds of every planner that decides by the batch's own counts where experts and tokens go."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from systems.planners.base import Costs, as_replicas
from systems.planners.chunks import BatchPlanner, in_order
from systems.planners.llep import LLEP

PLANNERS: dict[str, Callable[[], BatchPlanner]] = {
    "llep": lambda: LLEP(gate=0),
    "llep, small chunks": lambda: LLEP(alpha=1.2, min_chunk=3, gate=1.1, gate_over="experts"),
}
COSTS = Costs(1.0, 1.0, 1.0)
few, many = st.integers(0, 5), st.integers(0, 10**5)


@st.composite
def layers(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of a batch and of another, and the experts' owners, whose ranks have equally many."""
    ranks, local = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    tokens_GE, other_GE = (draw(arrays(np.int64, (ranks, ranks * local), elements=few | many)) for _ in range(2))
    tokens_GE[draw(st.integers(0, ranks - 1))] *= draw(st.integers(0, 1))  # a rank may bring nothing
    return tokens_GE, other_GE, np.array(draw(st.permutations(range(ranks * local)))) // local


@pytest.mark.parametrize("name", PLANNERS)
@settings(deadline=None, max_examples=100)
@given(layers())
def test_plans_are_legal_and_the_same_on_all_ranks(name, layer):
    tokens_GE, other_GE, owner_E = layer
    for array in layer:
        array.flags.writeable = False
    here, there = PLANNERS[name](), PLANNERS[name]()
    home_EG = as_replicas(owner_E, len(tokens_GE))
    replicas_EG = here.place(tokens_GE, home_EG, COSTS)
    assert replicas_EG.dtype == np.int64 and (replicas_EG >= home_EG).all() and replicas_EG.max() == 1
    assert (there.place(tokens_GE, home_EG, COSTS) == replicas_EG).all()

    sent_GEG = here.dispatch(tokens_GE, replicas_EG, owner_E)
    here.check_sent(sent_GEG, tokens_GE, replicas_EG)
    assert sent_GEG.min() >= 0 and (there.dispatch(tokens_GE, replicas_EG, owner_E) == sent_GEG).all()
    assert (sent_GEG.any(0) >= replicas_EG - home_EG).all(), "no expert travels where no token of it goes"

    here.place(tokens_GE, home_EG, COSTS)
    for counts_GE in (other_GE, tokens_GE):  # what was decided for one batch is not done to another
        here.check_sent(here.dispatch(counts_GE, replicas_EG, owner_E), counts_GE, replicas_EG)
    here.place(other_GE / 3, home_EG, COSTS)
    here.check_sent(here.dispatch(tokens_GE, home_EG, owner_E), tokens_GE, home_EG)


@given(st.data())
def test_chunks_in_order_are_the_tokens_one_by_one(data):
    ranks, num_experts = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    tokens_GE = data.draw(arrays(np.int64, (ranks, num_experts), elements=st.integers(0, 6)))
    cuts = [sorted(data.draw(st.lists(st.integers(0, total), max_size=3))) for total in tokens_GE.sum(0)]
    quotas = [np.diff([0, *cut, total]) for cut, total in zip(cuts, tokens_GE.sum(0), strict=True)]
    expert_C = np.repeat(np.arange(num_experts), [len(quota) for quota in quotas])
    quota_C = np.concatenate(quotas)
    source_N = np.concatenate([np.repeat(np.arange(ranks), tokens_G) for tokens_G in tokens_GE.T])
    chunks = np.split(source_N, quota_C.cumsum()[:-1])
    expected_CG = [np.bincount(chunk, minlength=ranks) for chunk in chunks]
    assert (in_order(tokens_GE, expert_C, quota_C) == expected_CG).all()
