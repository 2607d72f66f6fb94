from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.flow import least_maximum


def test_by_hand():
    # Expert 0's 9 tokens on ranks 0 and 1, which have 1 and 4 of their own: 7 each. Rank 2 cannot help.
    quota_EG = least_maximum(np.array([9, 1, 4, 2]), np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]))
    assert quota_EG.tolist() == [[6, 3, 0], [1, 0, 0], [0, 4, 0], [0, 0, 2]]


@settings(deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(0, 9) | st.integers(0, 10**6), min_size=1, max_size=8), st.data())
def test_no_set_of_ranks_has_less_than_what_only_it_can_take(ranks, loads, data):
    holders = st.sets(st.integers(0, ranks - 1), min_size=1)
    held = [data.draw(holders) for _ in loads]
    holds_EG = np.array([[int(rank in ranks_of) for rank in range(ranks)] for ranks_of in held])
    quota_EG = least_maximum(np.array(loads), holds_EG)
    assert quota_EG.min() >= 0 and quota_EG.sum(1).tolist() == loads and not quota_EG[holds_EG == 0].any()
    sets = [set(chosen) for size in range(1, ranks + 1) for chosen in combinations(range(ranks), size)]
    only = [sum(load for load, ranks_of in zip(loads, held, strict=True) if ranks_of <= chosen) for chosen in sets]
    assert quota_EG.sum(0).max() == max(-(-load // len(chosen)) for load, chosen in zip(only, sets, strict=True))
