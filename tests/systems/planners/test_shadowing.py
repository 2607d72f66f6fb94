import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs, as_replicas, rows_per_rank
from systems.planners.dispatch import stay_or_go_to_owner
from systems.planners.shadowing import changes, forward_s, rows_at_owners


def test_by_hand():
    loads_GE, owner_E = np.array([[6, 2, 1], [6, 0, 3]]), np.array([0, 0, 1])
    rows_G, received_G = rows_at_owners(loads_GE, owner_E)
    assert rows_G.tolist() == [14, 4] and received_G.tolist() == [6, 1]
    rows_EG, received_EG = changes(loads_GE, owner_E, np.ones((3, 2), np.int64))
    assert rows_EG.tolist() == [[-6, 6], [0, 0], [1, -1]]
    assert received_EG.tolist() == [[-6, 0], [0, 0], [0, -1]]
    assert forward_s(rows_G, received_G, Costs(row_s=10, move_row_s=1, move_expert_s=99)) == 14 * 10 + 2 * 6


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_the_model_knows_what_dispatch_sends(ranks, num_experts, seed):
    rng = np.random.default_rng(seed)
    tokens_GE, owner_E = rng.integers(0, 50, (ranks, num_experts)), rng.integers(0, ranks, num_experts)
    hosts_EG = np.maximum(rng.integers(0, 2, (num_experts, ranks)), as_replicas(owner_E, ranks))
    sent_GEG = stay_or_go_to_owner(tokens_GE, hosts_EG, owner_E)
    predicted = zip(rows_at_owners(tokens_GE, owner_E), changes(tokens_GE, owner_E, hosts_EG), strict=True)
    rows_G, received_G = (start_G + change_EG.sum(0) for start_G, change_EG in predicted)
    assert rows_G.tolist() == rows_per_rank(sent_GEG).tolist()
    assert received_G.tolist() == (rows_G - np.einsum("geg->g", sent_GEG)).tolist()
