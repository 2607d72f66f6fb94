"""What holds of every planner that decides by the batch's own counts, and how chunks get their rows."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from systems.planners.base import Costs, as_replicas
from systems.planners.chunks import BatchPlanner, in_order, in_proportion, locally_first
from systems.planners.harmoeny import HarMoEny
from systems.planners.llep import LLEP
from systems.planners.ultraep import UltraEP

PLANNERS: dict[str, Callable[[], BatchPlanner]] = {
    "llep": lambda: LLEP(gate=0),
    "llep, small chunks": lambda: LLEP(alpha=1.2, min_chunk=3, gate=1.1, gate_over="experts"),
    "harmoeny": lambda: HarMoEny(),
    "harmoeny, small moves": lambda: HarMoEny(least_move=1),
    "ultraep": lambda: UltraEP(),
    "ultraep, one slot": lambda: UltraEP(slots=1, min_chunk=2),
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
@settings(deadline=None, max_examples=50)
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

    here.place(tokens_GE, home_EG, COSTS)
    for counts_GE in (other_GE, tokens_GE):  # what was decided for one batch is not done to another
        here.check_sent(here.dispatch(counts_GE, replicas_EG, owner_E), counts_GE, replicas_EG)
    here.place(other_GE / 3, home_EG, COSTS)
    here.check_sent(here.dispatch(tokens_GE, home_EG, owner_E), tokens_GE, home_EG)


@st.composite
def quotas(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts, and for every expert ranks with a part each of its tokens: (tokens_GE, expert_C, rank_C, quota_C)."""
    ranks, num_experts = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    tokens_GE = draw(arrays(np.int64, (ranks, num_experts), elements=st.integers(0, 6)))
    chunks = []
    for expert, total in enumerate(tokens_GE.sum(0).tolist()):
        holders = draw(st.permutations(range(ranks)))[: draw(st.integers(1, ranks))]
        cuts = sorted(draw(st.integers(0, total)) for _ in holders[1:])
        chunks += zip([expert] * ranks, holders, np.diff([0, *cuts, total]).tolist(), strict=False)
    return tokens_GE, *np.array(chunks).T


@settings(deadline=None, max_examples=50)
@given(quotas())
def test_chunks_in_order_are_the_tokens_one_by_one(drawn):
    tokens_GE, expert_C, _, quota_C = drawn
    source_N = np.concatenate([np.repeat(np.arange(len(tokens_GE)), tokens_G) for tokens_G in tokens_GE.T])
    chunks = np.split(source_N, quota_C.cumsum()[:-1])
    expected_CG = [np.bincount(chunk, minlength=len(tokens_GE)) for chunk in chunks]
    assert (in_order(tokens_GE, expert_C, quota_C) == expected_CG).all()


@settings(deadline=None, max_examples=50)
@given(quotas())
def test_proportions_are_those_of_largest_remainders_one_by_one(drawn):
    tokens_GE, expert_C, _, weight_C = drawn
    rows_CG = in_proportion(tokens_GE, expert_C, weight_C)
    for rank, tokens_E in enumerate(tokens_GE):
        for expert, tokens in enumerate(tokens_E):
            mine = np.flatnonzero(expert_C == expert)
            exact = [Fraction(int(tokens * weight), max(int(weight_C[mine].sum()), 1)) for weight in weight_C[mine]]
            rows = [int(share) for share in exact]
            first = sorted(range(len(mine)), key=lambda chunk: rows[chunk] - exact[chunk])
            for chunk in first[: tokens - sum(rows)]:
                rows[chunk] += 1
            assert rows_CG[mine, rank].tolist() == rows


@settings(deadline=None, max_examples=50)
@given(quotas())
def test_local_tokens_come_first_and_quotas_are_met_but_for_rounding(drawn):
    tokens_GE, expert_C, rank_C, quota_C = drawn
    rows_CG, here_C = locally_first(tokens_GE, expert_C, rank_C, quota_C), np.arange(len(rank_C))
    for expert in range(tokens_GE.shape[1]):
        assert (rows_CG[expert_C == expert].sum(0) == tokens_GE[:, expert]).all()
    assert rows_CG.min() >= 0 and (abs(rows_CG.sum(1) - quota_C) < len(tokens_GE)).all()
    for local_C in (
        np.minimum(tokens_GE[rank_C, expert_C], quota_C),
        in_order(tokens_GE, expert_C, quota_C)[here_C, rank_C],
    ):
        assert rows_CG[here_C, rank_C].sum() >= local_C.sum(), "no more rows are remote than without local ones first"
