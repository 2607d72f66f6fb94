"""Which calls are measured: their volumes, their sizes, and uneven exchanges that fit together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.calibration.cases import COLLECTIVES, ITEMSIZE, Case, cases_for, sizes_for, uneven_splits

RANKS = st.integers(2, 9)


@pytest.mark.parametrize(
    ("collective", "volume"),
    [("all_gather", 120), ("reduce_scatter", 120), ("all_to_all", 120), ("all_reduce", 60), ("broadcast", 40)],
)
def test_volume_of_ten_floats_on_four_ranks(collective: str, volume: int):
    assert Case(collective, 4, 10).volume_bytes == volume


@given(ranks=RANKS, max_bytes=st.integers(1024, 1 << 22))
def test_tables_double_up_to_the_largest_size_and_checks_lie_between(ranks: int, max_bytes: int):
    cases = sizes_for(ranks, max_bytes)
    for collective in COLLECTIVES:
        sizes = {
            use: [c.volume_bytes for c in cases if (c.collective, c.use) == (collective, use)]
            for use in ("table", "between")
        }
        assert sizes["table"] == sorted(set(sizes["table"])) and sizes["table"][0] <= 4 * (ranks - 1)
        assert max_bytes / 2 - 4 * ranks < sizes["table"][-1] <= max_bytes + 4 * ranks
        assert not set(sizes["between"]) & set(sizes["table"])
        assert all(sizes["table"][0] < size < sizes["table"][-1] for size in sizes["between"])


@given(ranks=RANKS, elements=st.integers(4, 1000))
def test_uneven_exchange_fits_together_and_its_busiest_rank_moves_v(ranks: int, elements: int):
    splits = [uneven_splits(elements, ranks, rank) for rank in range(ranks)]
    sent_GG = np.array([sent_G for _, sent_G in splits])
    received_GG = np.array([received_G for received_G, _ in splits])
    assert (received_GG == sent_GG.T).all()
    off_rank_GG = sent_GG * (1 - np.eye(ranks, dtype=int))
    busiest = max(off_rank_GG.sum(0).max(), off_rank_GG.sum(1).max())
    assert busiest * ITEMSIZE == Case("all_to_all", ranks, elements, "uneven").volume_bytes


def test_ranks_of_gpus_are_never_late():
    alone, both = (cases_for(2, 4096, device) for device in ("cuda", "cpu"))
    assert alone == sizes_for(2, 4096) == [case for case in both if not case.late]
    assert len(both) == 2 * len(alone)
