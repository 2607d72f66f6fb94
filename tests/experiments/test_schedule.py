from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.records import Tier
from experiments.schedule import interleave, iterations_of, turns_of

names = st.text("abcdef0123456789", min_size=1, max_size=4)
turns = st.dictionaries(names, st.integers(1, 9), max_size=6)


def visits(turns: dict[str, int], rounds: int, seed: int = 0, first: int = 0) -> list[tuple[str, int]]:
    return list(chain.from_iterable(interleave(turns, rounds, seed, first)))


def test_two_systems_by_hand():
    ((a, _), (b, _)) = visits({"x": 1, "y": 1}, 1)
    assert [*interleave({a: 1, b: 3}, 2, 0)] == [
        [(a, 0), (b, 0), (b, 1), (b, 2)],
        [(b, 3), (a, 1), (b, 4), (b, 5)],
    ]


@pytest.mark.parametrize(("turns", "rounds"), [({}, 5), ({"x": 1}, 0)])
def test_nothing_to_do(turns, rounds):
    assert visits(turns, rounds) == []


@given(turns, st.integers(0, 20), st.integers(0, 10**6), st.integers(0, 100))
def test_every_cell_has_its_iterations_once_and_in_order(turns, rounds, seed, first):
    seen: dict[str, list[int]] = {cell: [] for cell in turns}
    for cell, iteration in visits(turns, rounds, seed, first):
        seen[cell].append(iteration)
    assert all(done == list(range(first, first + rounds * turns[cell])) for cell, done in seen.items())


@given(turns, st.integers(0, 20), st.integers(0, 10**6))
def test_forward_passes_of_a_round_are_spread_over_laps_each_the_reverse_of_the_one_before(turns, rounds, seed):
    laps: dict[tuple[int, int], list[str]] = {}
    for cell, iteration in visits(turns, rounds, seed):
        laps.setdefault(divmod(iteration, turns[cell]), []).append(cell)
    assert list(laps) == sorted(laps)
    assert all(sorted(order) == sorted(c for c in turns if lap < turns[c]) for (_, lap), order in laps.items())
    for before, after in pairwise(laps.values()):
        assert [c for c in after if c in before] == [c for c in before[::-1] if c in after]


@given(st.sets(names, max_size=6), st.integers(1, 8).map(lambda pairs: 2 * pairs), st.integers(0, 10**6))
def test_linear_drift_meets_all_systems_alike(cells, rounds, seed):
    drift = dict.fromkeys(cells, 0)
    for time, (cell, _) in enumerate(visits(dict.fromkeys(cells, 1), rounds, seed)):
        drift[cell] += time
    assert len(set(drift.values())) <= 1


def test_the_seed_decides_and_not_the_order_of_the_list():
    cells = {f"cell{i}": 1 for i in range(6)}
    assert visits(cells, 4, seed=3) == visits(dict(reversed(cells.items())), 4, seed=3)
    assert len({visits(cells, 4, seed)[0][0] for seed in range(20)}) > 1


@pytest.mark.parametrize(("ttft_s", "turn"), [(1.0, 1), (0.14, 1), (0.06, 2), (0.03, 4), (0.001, 8)])
def test_a_fast_system_has_more_forward_passes_in_a_round(ttft_s, turn):
    assert turns_of({"x": ttft_s}, Tier("mine", 1, 0, rounds=1, turn_s=0.12, longest_turn=8)) == {"x": turn}


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), turns)
def test_no_two_phases_share_an_iteration(rounds, longest_turn, warmup, turns):
    phases = iterations_of(Tier("mine", 1, warmup, rounds, turn_s=0.1, longest_turn=longest_turn))
    numbers = [i for phase in phases.values() for i in phase]
    assert len(set(numbers)) == len(numbers) == 2 * rounds * longest_turn + warmup + 1
    shortened = {cell: min(turn, longest_turn) for cell, turn in turns.items()}
    for phase in ("measure", "instrumented"):
        assert {i for _, i in visits(shortened, rounds, first=phases[phase].start)} <= set(phases[phase])
