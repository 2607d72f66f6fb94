from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.schedule import interleave, is_steady, iterations_of

names = st.lists(st.text("abcdef0123456789", min_size=1, max_size=4), unique=True, max_size=6)


def visits(cells: list[str], iterations: int, block: int, seed: int = 0) -> list[tuple[str, list[int]]]:
    return [(cell, list(visit)) for turns in interleave(cells, range(iterations), block, seed) for cell, visit in turns]


def test_two_systems_by_hand():
    (a, b) = [cell for cell, _ in visits(["x", "y"], 1, 1)]
    assert visits(["x", "y"], 7, 2) == [
        *[(a, [0, 1]), (b, [0, 1])],
        *[(b, [2, 3]), (a, [2, 3])],
        *[(a, [4, 5]), (b, [4, 5])],
        *[(b, [6]), (a, [6])],
    ]


@pytest.mark.parametrize(("cells", "iterations"), [([], 5), (["x"], 0)])
def test_nothing_to_do(cells, iterations):
    assert visits(cells, iterations, 2) == []


@given(names, st.integers(0, 40), st.integers(1, 9), st.integers(0, 10**6))
def test_every_cell_has_every_iteration_once_and_in_order(cells, iterations, block, seed):
    seen: dict[str, list[int]] = {cell: [] for cell in cells}
    for cell, iterations_here in chain.from_iterable(interleave(cells, range(iterations), block, seed)):
        assert 1 <= len(iterations_here) <= block
        seen[cell] += iterations_here
    assert all(done == list(range(iterations)) for done in seen.values())


@given(names, st.integers(0, 40), st.integers(1, 9), st.integers(0, 10**6))
def test_each_round_has_all_systems_in_the_reverse_order_of_the_round_before(cells, iterations, block, seed):
    blocks = [[cell for cell, _ in turns] for turns in interleave(cells, range(iterations), block, seed)]
    assert all(sorted(order) == sorted(cells) for order in blocks)
    assert all(after == before[::-1] for before, after in pairwise(blocks))


@given(names, st.integers(1, 8).map(lambda pairs: 2 * pairs), st.integers(1, 4), st.integers(0, 10**6))
def test_linear_drift_meets_all_systems_alike(cells, num_blocks, block, seed):
    drift = dict.fromkeys(cells, 0)
    for time, (cell, _) in enumerate(chain.from_iterable(interleave(cells, range(num_blocks * block), block, seed))):
        drift[cell] += time
    assert len(set(drift.values())) <= 1


def test_the_seed_decides_and_not_the_order_of_the_list():
    cells = [f"cell{i}" for i in range(6)]
    assert visits(cells, 4, 2, seed=3) == visits(cells[::-1], 4, 2, seed=3)
    assert len({visits(cells, 4, 2, seed)[0][0] for seed in range(20)}) > 1
    assert cells == [f"cell{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("values", "steady"),
    [
        ([10.0] * 10, True),
        ([9.9, 10.1] * 15, True),
        ([9.0, 11.0] * 15, False),  # the interval is [9, 11]
        ([10.0] * 29 + [1000.0], True),  # an outlier does not move a median
        ([10.0] * 5, False),  # five values have no 95 % interval
        ([float("nan")] * 30, False),
    ],
)
def test_steady_is_a_narrow_interval_of_the_median(values, steady):
    assert is_steady(values, target=0.02) == steady


def test_no_two_phases_share_an_iteration():
    phases = iterations_of({"max_iterations": 4, "instrumented": 2, "warmup": 1})
    assert phases == {"measure": range(4), "instrumented": range(4, 6), "warmup": range(6, 8)}
