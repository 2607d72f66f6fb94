import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs, as_replicas, imbalance, rows_per_rank
from systems.planners.dispatch import to_owner
from systems.planners.ultraep import UltraEP, export

COSTS = Costs(1.0, 1.0, 1.0)
OWNED = [[(0, 60), (1, 30)], [(2, 20), (3, 5)], [(4, 10), (5, 10)]]  # heaviest first; ranks with 90, 25 and 20 rows


def planned(planner: UltraEP, tokens_GE: np.ndarray, owner_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    replicas_EG = planner.place(tokens_GE, as_replicas(owner_E, len(tokens_GE)), COSTS)
    return replicas_EG, planner.dispatch(tokens_GE, replicas_EG, owner_E)


def test_exports_by_hand():
    # 45 rows each: of 45 to export 25 to rank 2, which has most room, and 20 to rank 1.
    assert export([90, 25, 20], OWNED, 45, 2, 1) == [(0, 2, 25), (0, 1, 20)]
    # A copy of at least 22 rows: rank 1 has no room for it, neither of expert 0 nor of expert 1.
    assert export([90, 25, 20], OWNED, 45, 2, 22) is None
    assert export([90, 25, 20], OWNED, 47, 2, 16) == [(0, 2, 27), (0, 1, 16)]
    # 44 is below the mean; without slots nothing can go; 90 needs nothing.
    assert export([90, 25, 20], OWNED, 44, 2, 1) is None
    assert export([90, 25, 20], OWNED, 45, 0, 1) is None
    assert export([90, 25, 20], OWNED, 90, 0, 1) == []


def test_an_owner_keeps_a_token_and_the_next_expert_follows():
    owned = [[(0, 20), (1, 20)], [(2, 1), (3, 0)], [(4, 0), (5, 0)]]
    # 26 to export: 13 of expert 0 to rank 2, 6 more to rank 1 leave one; 7 of expert 1 to the rank with most room.
    assert export([40, 1, 0], owned, 14, 2, 1) == [(0, 2, 14), (0, 1, 5), (1, 1, 7)]
    # With one slot a rank there is none left for expert 1.
    assert export([40, 1, 0], owned, 14, 1, 1) is None


def test_copies_at_first_are_no_smaller_than_an_even_share_of_what_must_go():
    """Of 30 rows to export each of three ranks must take 10, then each of two 8, then the last one what is left."""
    owned = [[(0, 60)], [(1, 16)], [(2, 20)], [(3, 22)]]
    assert export([60, 16, 20, 24], owned, 30, 1, None) == [(0, 1, 14), (0, 2, 10), (0, 3, 6)]
    # 46 rows: the first rank takes 16 and the second 15, which is half of what is left; the third has no room for 15.
    assert export([80, 18, 19, 20], [[(0, 80)], *owned[1:]], 34, 1, None) is None
    assert export([80, 18, 19, 20], [[(0, 80)], *owned[1:]], 34, 1, 1) is None


def test_the_search_finds_what_three_tries_near_the_mean_do_not():
    """One slot on each of three ranks: of five hot experts of 80 two stay whole, and one token of each other."""
    tokens_GE = np.zeros((4, 20), np.int64)
    tokens_GE[1, :5] = 80
    replicas_EG, sent_GEG = planned(UltraEP(slots=1, min_chunk=1), tokens_GE, np.arange(20) // 5)
    assert rows_per_rank(sent_GEG).tolist() == [163, 79, 79, 79]
    assert replicas_EG.sum() == 23
    assert planned(UltraEP(slots=1, min_chunk=80), tokens_GE, np.arange(20) // 5)[0].sum() == 20, "too small to copy"


layers = st.lists(st.lists(st.integers(0, 40) | st.integers(0, 4000), min_size=12, max_size=12), min_size=4, max_size=4)


@settings(deadline=None)
@given(layers, st.integers(0, 3), st.sampled_from([1, 30, 1024]))
def test_slots_owners_and_the_threshold(rows, slots, min_chunk):
    tokens_GE, owner_E = np.array(rows), np.arange(12) // 3
    planner, load_E = UltraEP(slots, min_chunk), tokens_GE.sum(0)
    replicas_EG, sent_GEG = planned(planner, tokens_GE, owner_E)
    home_EG = as_replicas(owner_E, 4)
    assert ((replicas_EG - home_EG).sum(0) <= slots).all()

    exports = planner.exports(load_E, owner_E, 4)
    assert len({(expert, rank) for expert, rank, _ in exports}) == len(exports) == (replicas_EG - home_EG).sum()
    kept_E = load_E - np.bincount([expert for expert, *_ in exports], [rows for *_, rows in exports], minlength=12)
    assert (kept_E >= np.minimum(load_E, 1)).all()
    planned_G = np.bincount(owner_E, kept_E, 4) + np.bincount([g for _, g, _ in exports], [n for *_, n in exports], 4)
    before_G = rows_per_rank(to_owner(tokens_GE, home_EG, owner_E))
    threshold = max(planned_G.max(), -(-tokens_GE.sum() // 4))
    assert threshold <= max(before_G.max(), 1)
    assert rows_per_rank(sent_GEG).max() <= threshold + 4 * np.count_nonzero(replicas_EG.sum(1) > 1), "but for rounding"


def test_balanced_load_makes_no_copies():
    replicas_EG, _ = planned(UltraEP(), np.full((4, 12), 1000), np.arange(12) // 3)
    assert (replicas_EG == as_replicas(np.arange(12) // 3, 4)).all()


@pytest.mark.parametrize(("slots", "expected"), [(2, 1.99), (4, 1.0), (8, 1.01)])
def test_the_papers_point(slots, expected, tokens_GE, contiguous_EG):
    """13 hot experts of 8,300 rows on rank 0, of which 80,000 are to go: six copies take 50,000, and 60,000 stay."""
    planner = UltraEP(slots)
    replicas_EG = planner.place(tokens_GE, contiguous_EG, COSTS)
    assert imbalance(planner.dispatch(tokens_GE, replicas_EG, np.arange(128) // 32)) == pytest.approx(
        expected, abs=0.02
    )


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"planner\.slots is -1; it must be a whole number of at least 0"):
        UltraEP(slots=-1)
    with pytest.raises(ValueError, match=r"planner\.min_chunk is 0; it must be a whole number of at least 1"):
        UltraEP(min_chunk=0)
