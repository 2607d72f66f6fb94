import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import as_replicas, rows_per_rank
from systems.planners.dispatch import evenly, stay_or_go_to_owner, to_owner
from systems.planners.packing import count_replicas

seeds = st.integers(0, 2**32 - 1)


def drawn(ranks: int, num_experts: int, most: int, replicas: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens_GE and replicas_EG with up to `replicas` of an expert on a rank, and at least one anywhere."""
    rng = np.random.default_rng(seed)
    replicas_EG = rng.integers(0, replicas + 1, (num_experts, ranks))
    replicas_EG[np.arange(num_experts), rng.integers(0, ranks, num_experts)] += ~replicas_EG.any(1)
    return rng.integers(0, most, (ranks, num_experts), endpoint=True), replicas_EG


def test_dealing_by_hand():
    # The first expert's tokens 0 1 2 | 3 | 4 5 go to places 0, 1, 1 of ranks 0, 2, 2 in turn.
    sent_GEG = evenly(np.array([[3], [1], [2]]), np.array([[1, 0, 2]]), np.zeros(1, int))
    assert sent_GEG[:, 0].tolist() == [[1, 0, 2], [1, 0, 0], [0, 0, 2]]
    # The second one's begin at place floor(0.618 x 3) = 1.
    sent_GEG = evenly(np.array([[0, 1], [0, 4]]), np.array([[1, 1], [2, 1]]), np.zeros(2, int))
    assert sent_GEG[:, 1].tolist() == [[1, 0], [2, 2]]


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 6), st.integers(1, 8), st.sampled_from([1, 9, 10**6]), st.integers(1, 3), seeds)
def test_a_rank_s_tokens_and_those_of_all_are_even_over_replicas(ranks, num_experts, most, replicas, seed):
    tokens_GE, replicas_EG = drawn(ranks, num_experts, most, replicas, seed)
    sent_GEG = evenly(tokens_GE, replicas_EG, np.zeros(num_experts, int))
    assert (sent_GEG.sum(2) == tokens_GE).all() and not sent_GEG[:, replicas_EG == 0].any()
    count_E = replicas_EG.sum(1)
    for total_XE, parts_XEG in ((tokens_GE, sent_GEG), (tokens_GE.sum(0)[None], sent_GEG.sum(0)[None])):
        least_XE = total_XE // count_E
        most_XE = least_XE + (total_XE % count_E > 0)
        assert (parts_XEG >= least_XE[:, :, None] * replicas_EG).all()
        assert (parts_XEG <= most_XE[:, :, None] * replicas_EG).all()


def test_no_rank_is_favoured_by_tokens_that_cannot_be_halved():
    sent_GEG = evenly(np.eye(4, 300, dtype=int).cumsum(1), np.ones((300, 4), int), np.zeros(300, int))
    assert np.ptp(rows_per_rank(sent_GEG)) <= 8, "300 experts of one to four tokens each"


def test_no_pair_of_ranks_gets_much_more_than_others():
    """On 32 ranks that have equally many tokens, from each rank to each host as many as from any other."""
    rng = np.random.default_rng(0)
    expert_R = np.concatenate([np.arange(256), rng.integers(0, 64, 256)])
    replicas_EG = count_replicas(expert_R, rng.permutation(512) % 32, 256, 32)
    tokens_GE = np.tile(rng.multinomial(32_768, rng.dirichlet(np.full(256, 2.0))), (32, 1))
    flow_GG = evenly(tokens_GE, replicas_EG, np.zeros(256, int)).sum(1)
    assert (flow_GG.max(0) - flow_GG.min(0) <= (replicas_EG > 0).sum(0)).all(), "a token for each expert at most"
    assert (flow_GG / flow_GG.mean(0)).max() < 1.02


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 8), seeds)
def test_tokens_stay_or_go_to_the_owner(ranks, num_experts, seed):
    tokens_GE, replicas_EG = drawn(ranks, num_experts, 9, 1, seed)
    owner_E = replicas_EG.argmax(1)
    sent_GEG = stay_or_go_to_owner(tokens_GE, replicas_EG, owner_E)
    for source, expert in np.ndindex(ranks, num_experts):
        goes_to = source if replicas_EG[expert, source] else owner_E[expert]
        assert sent_GEG[source, expert, goes_to] == sent_GEG[source, expert].sum() == tokens_GE[source, expert]
    home_GEG = to_owner(tokens_GE, replicas_EG, owner_E)
    assert (home_GEG == tokens_GE[:, :, None] * as_replicas(owner_E, ranks)).all()
