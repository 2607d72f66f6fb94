from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.schedule import interleave

names = st.lists(st.text("abcdef0123456789", min_size=1, max_size=4), unique=True, max_size=6)


def visits(cells: list[str], iterations: int, block: int, seed: int = 0) -> list[tuple[str, list[int]]]:
    return [(cell, list(visit)) for cell, visit in interleave(cells, iterations, block, seed)]


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
    for cell, iterations_here in interleave(cells, iterations, block, seed):
        assert 1 <= len(iterations_here) <= block
        seen[cell] += iterations_here
    assert all(done == list(range(iterations)) for done in seen.values())


@given(names, st.integers(0, 40), st.integers(1, 9), st.integers(0, 10**6))
def test_each_block_has_all_systems_in_the_reverse_order_of_the_block_before(cells, iterations, block, seed):
    blocks = [
        [cell for cell, _ in group]
        for _, group in groupby(interleave(cells, iterations, block, seed), key=lambda visit: visit[1].start)
    ]
    assert all(sorted(order) == sorted(cells) for order in blocks)
    assert all(after == before[::-1] for before, after in pairwise(blocks))


@given(names, st.integers(1, 8).map(lambda pairs: 2 * pairs), st.integers(1, 4), st.integers(0, 10**6))
def test_linear_drift_meets_all_systems_alike(cells, num_blocks, block, seed):
    drift = dict.fromkeys(cells, 0)
    for time, (cell, _) in enumerate(interleave(cells, num_blocks * block, block, seed)):
        drift[cell] += time
    assert len(set(drift.values())) <= 1


def test_the_seed_decides_and_not_the_order_of_the_list():
    cells = [f"cell{i}" for i in range(6)]
    assert visits(cells, 4, 2, seed=3) == visits(cells[::-1], 4, 2, seed=3)
    assert len({visits(cells, 4, 2, seed)[0][0] for seed in range(20)}) > 1
    assert cells == [f"cell{i}" for i in range(6)]
