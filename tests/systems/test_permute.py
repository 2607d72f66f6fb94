import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.permute import group_by_expert, inverse, regroup

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


def test_regroup_by_hand():
    # Arriving: rank 0's 2 rows for expert 0 and 3 for expert 1, then rank 1's 1 and 4.
    assert regroup(torch.tensor([[2, 3], [1, 4]])).tolist() == [0, 1, 5, 2, 3, 4, 6, 7, 8, 9]
    assert regroup(torch.tensor([[0, 2], [0, 0], [1, 1]])).tolist() == [2, 0, 1, 3]
    assert regroup(torch.tensor([[3, 0, 2]])).tolist() == [0, 1, 2, 3, 4]  # one rank: in order already
    assert regroup(torch.tensor([[0, 0], [0, 0]])).tolist() == []


@settings(deadline=None)
@given(row_counts)
def test_regroup_sorts_by_expert_then_rank(rows):
    arriving = [(rank, expert, i) for rank, row in enumerate(rows) for expert, n in enumerate(row) for i in range(n)]
    order_R = regroup(torch.tensor(rows)).tolist()
    assert sorted(order_R) == list(range(len(arriving)))
    assert [arriving[place] for place in order_R] == sorted(arriving, key=lambda row: (row[1], row[0], row[2]))


def test_inverse_by_hand():
    assert inverse(torch.tensor([2, 0, 1])).tolist() == [1, 2, 0]


@settings(deadline=None)
@given(st.integers(0, 40).flatmap(lambda n: st.permutations(range(n))))
def test_inverse_undoes(order):
    order_N, x_N = torch.tensor(order, dtype=torch.int64), torch.arange(len(order)) * 10
    assert torch.equal(x_N[order_N][inverse(order_N)], x_N)
    assert torch.equal(x_N[inverse(order_N)][order_N], x_N)
