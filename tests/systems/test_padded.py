"""Slots: by hand, and what capacity keeps and drops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.base import LayerShape
from systems.padded import PaddedExpertParallel, put_in_slots, slots_of_copies
from systems.permute import places_in_experts

NUM_EXPERTS = 4
top_1 = st.lists(st.integers(0, NUM_EXPERTS - 1), max_size=40).map(
    lambda ids: torch.tensor(ids, dtype=torch.int64).view(-1, 1)
)
top_2 = st.lists(st.permutations(range(NUM_EXPERTS)).map(lambda order: order[:2]), max_size=40).map(
    lambda ids: torch.tensor(ids, dtype=torch.int64).view(-1, 2)
)
chunks_and_capacities = st.sampled_from([1, 2, 4]).flatmap(
    lambda chunks: st.tuples(st.just(chunks), st.integers(1, 8).map(lambda slots: slots * chunks))
)


def kept(expert_TK: torch.Tensor, capacity: int) -> torch.Tensor:
    """Which copies have a slot."""
    place_TK, _ = places_in_experts(expert_TK, NUM_EXPERTS)
    return slots_of_copies(expert_TK, place_TK, NUM_EXPERTS, capacity) < NUM_EXPERTS * capacity


def test_slots_by_hand():
    expert_T1, place_T1 = torch.tensor([[1], [0], [1], [1]]), torch.tensor([[0], [0], [1], [2]])
    assert slots_of_copies(expert_T1, place_T1, 2, 2).flatten().tolist() == [2, 0, 3, 4]
    # In two chunks: place 0 of expert 0, of expert 1; then place 1 of expert 0, of expert 1.
    assert slots_of_copies(expert_T1, place_T1, 2, 2, chunks=2).flatten().tolist() == [1, 0, 3, 4]


def test_copies_in_slots_by_hand():
    x_TD = torch.tensor([[1.0], [2.0], [3.0]])
    assert put_in_slots(x_TD, torch.tensor([[2], [4], [0]]), 4).flatten().tolist() == [3, 0, 1, 0, 0]
    assert put_in_slots(x_TD, torch.tensor([[2, 1], [4, 3], [0, 4]]), 4).flatten().tolist() == [3, 1, 1, 2, 0]
    assert put_in_slots(x_TD[:0], torch.empty(0, 1, dtype=torch.int64), 2).tolist() == [[0], [0], [0]]


@settings(deadline=None)
@given(top_2, chunks_and_capacities)
def test_every_kept_copy_has_a_slot_of_its_expert_for_itself(expert_TK, drawn):
    chunks, capacity = drawn
    place_TK, rows_E = places_in_experts(expert_TK, NUM_EXPERTS)
    slot_TK = slots_of_copies(expert_TK, place_TK, NUM_EXPERTS, capacity, chunks)
    kept_TK = slot_TK < NUM_EXPERTS * capacity
    slots = slot_TK[kept_TK]
    assert len(slots.unique()) == len(slots)
    assert torch.equal(slots // (capacity // chunks) % NUM_EXPERTS, expert_TK[kept_TK])
    kept_E = torch.bincount(expert_TK[kept_TK], minlength=NUM_EXPERTS)
    assert torch.equal(kept_E, rows_E.clamp(max=capacity))


@settings(deadline=None)
@given(top_1, st.integers(1, 8))
def test_the_last_tokens_of_an_expert_are_dropped(expert_T1, capacity):
    expert_T, kept_T = expert_T1.flatten(), kept(expert_T1, capacity).flatten()
    for expert in range(NUM_EXPERTS):
        mine = (expert_T == expert).nonzero().flatten().tolist()
        assert [token for token in mine if not kept_T[token]] == mine[capacity:]


@settings(deadline=None)
@given(top_2, st.integers(1, 8))
def test_a_second_choice_never_displaces_a_first_one(expert_TK, capacity):
    assert torch.equal(kept(expert_TK, capacity)[:, :1], kept(expert_TK[:, :1], capacity))


def test_experts_that_cannot_be_divided_are_named():
    with pytest.raises(ValueError, match=r"model\.num_experts \(6\) must be divisible by cluster\.world_size \(4\)"):
        PaddedExpertParallel.check(LayerShape(6, 2, 4, 5), 4)
