import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs, as_replicas, rows_per_rank
from systems.planners.dispatch import stay_or_go_home
from systems.planners.shadowing import at_home, changes, forward_s


def test_by_hand():
    loads_GE, home_E = np.array([[6, 2, 1], [6, 0, 3]]), np.array([0, 0, 1])
    rows_G, received_G = at_home(loads_GE, home_E)
    assert rows_G.tolist() == [14, 4] and received_G.tolist() == [6, 1]
    rows_EG, received_EG = changes(loads_GE, home_E, np.ones((3, 2), np.int64))
    assert rows_EG.tolist() == [[-6, 6], [0, 0], [1, -1]]
    assert received_EG.tolist() == [[-6, 0], [0, 0], [0, -1]]
    assert forward_s(rows_G, received_G, Costs(row_s=10, move_row_s=1, move_expert_s=99)) == 14 * 10 + 2 * 6


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_the_model_knows_what_dispatch_sends(ranks, num_experts, seed):
    rng = np.random.default_rng(seed)
    tokens_GE, home_E = rng.integers(0, 50, (ranks, num_experts)), rng.integers(0, ranks, num_experts)
    hosts_EG = np.maximum(rng.integers(0, 2, (num_experts, ranks)), as_replicas(home_E, ranks))
    sent_GEG = stay_or_go_home(tokens_GE, hosts_EG, home_E)
    predicted = zip(at_home(tokens_GE, home_E), changes(tokens_GE, home_E, hosts_EG), strict=True)
    rows_G, received_G = (start_G + change_EG.sum(0) for start_G, change_EG in predicted)
    assert rows_G.tolist() == rows_per_rank(sent_GEG).tolist()
    assert received_G.tolist() == (rows_G - np.einsum("geg->g", sent_GEG)).tolist()
