"""How collectives are timed: turns that meet drift alike, and durations of the rank that came last."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scripts.calibration.cases import Case
from scripts.calibration.timing import durations, late_ranks, turns


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_turns_spread_each_case_evenly_over_the_rounds(repetitions: list[int]):
    order, rounds = np.array(list(turns(repetitions))), max(repetitions)
    assert np.bincount(order, minlength=len(repetitions)).tolist() == repetitions
    every_round = order == repetitions.index(rounds)
    for case, count in enumerate(repetitions):
        due_rounds = [-(-number * rounds // count) for number in range(1, count + 1)]
        begun = every_round.cumsum()[order == case]  # rounds at that call; the current one may not be counted yet
        assert all(seen in (due - 1, due) for seen, due in zip(begun, due_rounds, strict=True))


def test_ranks_of_a_case_are_late_in_turn_and_the_source_of_a_broadcast_never():
    cases = [Case("all_gather", 3, 1), Case("all_gather", 3, 1, late=True), Case("broadcast", 3, 1, late=True)]
    order = [1, 0, 2, 1, 2, 1, 2, 1]
    assert late_ranks(cases, order) == [0, None, 1, 1, 2, 2, 1, 0]


def test_duration_is_that_of_the_rank_that_came_last():
    times_NR2 = np.array([[[0.0, 15.0], [3.0, 13.0]]])  # rank 0 waits 3 s for rank 1
    assert durations(times_NR2, "all_gather", common_clock=True) == [12.0]
    assert durations(times_NR2, "all_gather", common_clock=False) == [10.0]


def test_source_of_a_broadcast_does_not_wait():
    times_NR2 = np.array([[[0.0, 1.0], [0.0, 12.0], [0.0, 11.0]]])
    assert durations(times_NR2, "broadcast", common_clock=False) == [11.0]
