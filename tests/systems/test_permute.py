import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.engines import find_engine
from systems.permute import (
    experts_of_arrivals,
    group_by_expert,
    inverse,
    places_in_experts,
    transposed_blocks,
    weighted_sum,
)

NUM_EXPERTS = 5
# An id of NUM_EXPERTS is padding.
expert_ids = st.lists(st.integers(0, NUM_EXPERTS), max_size=60).map(lambda ids: torch.tensor(ids, dtype=torch.int64))
row_counts = st.integers(1, 5).flatmap(
    lambda num_local: st.lists(
        st.lists(st.integers(0, 4), min_size=num_local, max_size=num_local), min_size=1, max_size=5
    )
)


def test_group_by_expert_by_hand():
    order_N, rows_E = group_by_expert(torch.tensor([2, 0, 2, 1, 0]), 4)
    assert order_N.tolist() == [1, 4, 3, 0, 2]
    assert rows_E.tolist() == [2, 1, 2, 0]


def test_padding_sorts_last_and_is_not_counted():
    order_N, rows_E = group_by_expert(torch.tensor([3, 1, 3, 0]), 3)
    assert order_N.tolist() == [3, 1, 0, 2]
    assert rows_E.tolist() == [1, 1, 0]


def test_no_copies_at_all():
    order_N, rows_E = group_by_expert(torch.tensor([], dtype=torch.int64), 3)
    assert order_N.tolist() == [] and rows_E.tolist() == [0, 0, 0]


@settings(deadline=None)
@given(expert_ids)
def test_group_by_expert_is_a_stable_sort(expert_N):
    order_N, rows_E = group_by_expert(expert_N, NUM_EXPERTS)
    ids = expert_N.tolist()
    assert order_N.tolist() == sorted(range(len(ids)), key=lambda copy: (ids[copy], copy))
    assert rows_E.tolist() == [ids.count(expert) for expert in range(NUM_EXPERTS)]
    assert order_N.dtype == rows_E.dtype == torch.int64


def regroup(rows_Ge: torch.Tensor) -> torch.Tensor:
    return group_by_expert(experts_of_arrivals(rows_Ge, int(rows_Ge.sum())), rows_Ge.shape[1])[0]


def test_arrivals_by_hand():
    # Arriving: rank 0's 2 rows for expert 0 and 3 for expert 1, then rank 1's 1 and 4.
    assert regroup(torch.tensor([[2, 3], [1, 4]])).tolist() == [0, 1, 5, 2, 3, 4, 6, 7, 8, 9]
    assert regroup(torch.tensor([[0, 2], [0, 0], [1, 1]])).tolist() == [2, 0, 1, 3]
    assert regroup(torch.tensor([[3, 0, 2]])).tolist() == [0, 1, 2, 3, 4]  # one rank: in order already
    assert regroup(torch.tensor([[0, 0], [0, 0]])).tolist() == []


@settings(deadline=None)
@given(row_counts)
def test_arrivals_sort_by_expert_then_rank(rows):
    arriving = [(rank, expert, i) for rank, row in enumerate(rows) for expert, n in enumerate(row) for i in range(n)]
    order_R = regroup(torch.tensor(rows)).tolist()
    assert sorted(order_R) == list(range(len(arriving)))
    assert [arriving[place] for place in order_R] == sorted(arriving, key=lambda row: (row[1], row[0], row[2]))


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=60))
def test_engines_group_alike(ids):
    expert_N = torch.tensor(ids, dtype=torch.int64)
    for found, expected in zip(find_engine("cpu").group(expert_N, 5), group_by_expert(expert_N, 5), strict=True):
        assert torch.equal(found, expected)


def test_cpu_refuses_an_expert_that_is_not_there():
    with pytest.raises(RuntimeError, match="expert 7 of 5"):
        find_engine("cpu").group(torch.tensor([1, 7]), 5)


def test_places_by_hand():
    place_T1, rows_E = places_in_experts(torch.tensor([[2], [0], [2], [2], [0]]), 4)
    assert place_T1.tolist() == [[0], [0], [1], [2], [1]] and rows_E.tolist() == [2, 0, 3, 0]
    # Expert 1 is the first choice of tokens 0 and 2, so token 1, whose second choice it is, comes after both.
    place_TK, rows_E = places_in_experts(torch.tensor([[1, 0], [0, 1], [1, 0]]), 2)
    assert place_TK.tolist() == [[0, 1], [0, 2], [1, 2]] and rows_E.tolist() == [3, 3]
    assert places_in_experts(torch.empty(0, 2, dtype=torch.int64), 2)[0].shape == (0, 2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=40))
def test_places_count_what_comes_before(choices):
    place_TK, _ = places_in_experts(torch.tensor(choices, dtype=torch.int64).view(-1, 2), 5)
    copies = [choice[k] for k in (0, 1) for choice in choices]
    assert place_TK.T.flatten().tolist() == [copies[:i].count(expert) for i, expert in enumerate(copies)]


def test_weighted_sum_by_hand():
    y_ND, weight_TK = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert weighted_sum(y_ND, weight_TK).tolist() == [[1.5], [3.0]]
    assert weighted_sum(y_ND, torch.tensor([[1.0], [2.0], [0.0], [1.0]])).tolist() == [[1.0], [4.0], [0.0], [4.0]]
    assert weighted_sum(y_ND[:0], weight_TK[:0]).shape == (0, 1)


def test_inverse_by_hand():
    assert inverse(torch.tensor([2, 0, 1])).tolist() == [1, 2, 0]


@settings(deadline=None)
@given(st.integers(0, 40).flatmap(lambda n: st.permutations(range(n))))
def test_inverse_undoes(order):
    order_N, x_N = torch.tensor(order, dtype=torch.int64), torch.arange(len(order)) * 10
    assert torch.equal(x_N[order_N][inverse(order_N)], x_N)
    assert torch.equal(x_N[inverse(order_N)][order_N], x_N)


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=6))
def test_transposed_blocks(rows):
    rows_AB = torch.tensor(rows)
    blocks = [[(a, b, i) for i in range(count)] for a, row in enumerate(rows) for b, count in enumerate(row)]
    stand = [place for block in blocks for place in block]
    order_N = transposed_blocks(rows_AB, len(stand))
    assert [stand[i] for i in order_N] == sorted(stand, key=lambda place: (place[1], place[0], place[2]))
