"""Shared rows, meetings, and every collective on them, with threads as ranks."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters.clocks import HostClock, VirtualClock
from clusters.device_lock import DeviceLock
from clusters.emulated import EmulatedGroup
from clusters.network import Network
from clusters.shared_memory import KEPT_BYTES, ROW_BYTES, SharedBuffer


def on_ranks(num_ranks, do, timeout_s=5.0, stay=True):
    """What do(rank, board) returns on each rank; ranks that do not stay are gone when they are done."""
    store, boards = dist.HashStore(), []

    def run(rank):
        board = SharedBuffer(store, rank, num_ranks, timedelta(seconds=timeout_s))
        if stay:
            boards.append(board)
        return do(rank, board)

    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(run, range(num_ranks)))


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_ranks_read_what_the_others_wrote_and_noted_before_they_met(num_ranks):
    def swap(rank, board):
        seen = []
        for number in range(3):
            board.write(torch.full((2, 2), 10.0 * number + rank))
            notes = board.meet([rank, number])
            seen.append((notes.tolist(), board.read(torch.empty(2), start=1).tolist()))
            board.meet()
        return seen

    ranks = range(num_ranks)
    expected = [([[rank, n] for rank in ranks], [[10.0 * n + rank] * 2 for rank in ranks]) for n in range(3)]
    assert on_ranks(num_ranks, swap) == [expected] * num_ranks


def test_the_memory_of_a_large_message_is_given_back():
    def put(rank, board):
        found = []
        for size in (KEPT_BYTES, KEPT_BYTES + 1):
            board.write(torch.ones(size, dtype=torch.uint8))
            board.meet()
            board.forget()
            found.append(int(board.read(torch.empty(size, dtype=torch.uint8))[rank, -1000:-1].max()))
            board.meet()
        return found

    assert on_ranks(2, put) == [[1, 0]] * 2


def test_rows_keep_kinds_and_shapes():
    tensors = [
        torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
        torch.tensor([True, False, True]),
        torch.arange(6).view(2, 3).T,
        torch.tensor(7, dtype=torch.uint8),
        torch.empty(0, 4),
    ]

    def put(rank, board):
        for tensor in tensors:
            board.write(tensor)
            board.meet()
            assert all(torch.equal(row, tensor) for row in board.read(tensor))
            board.meet()

    on_ranks(2, put)


def test_the_memory_has_no_name_and_is_gone_with_its_last_user():
    def maps(rank=0, board=None):
        return Path("/proc/self/maps").read_text().count("/memfd:board (deleted)")

    assert on_ranks(1, maps) == [maps() + 1]


def test_a_row_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match=f"sends {ROW_BYTES + 1} bytes at once; at most {ROW_BYTES} can be shared"):
        on_ranks(1, lambda rank, board: board.write(torch.empty(ROW_BYTES + 1, dtype=torch.uint8, device="meta")))


def test_a_rank_that_does_not_come_is_named_in_time():
    with pytest.raises(TimeoutError, match=r"rank 1 of the group has not come to a collective within 0\.2 s"):
        on_ranks(2, lambda rank, board: rank or board.meet(), timeout_s=0.2)
    with pytest.raises(TimeoutError, match=r"not all ranks of the group have come to a collective within 0\.2 s"):
        on_ranks(2, lambda rank, board: rank and board.meet(), timeout_s=0.2)


def test_a_group_that_does_not_come_together_says_so():
    with pytest.raises(TimeoutError, match=r"only 1 of 3 ranks have joined their group within 0\.1 s"):
        SharedBuffer(dist.HashStore(), 0, 3, timedelta(seconds=0.1))


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_rank_that_is_gone_is_missed_at_once(gone):
    with pytest.raises(ConnectionError, match=rf"Connection closed by peer: rank {gone} of the group is gone"):
        on_ranks(2, lambda rank, board: rank == gone or board.meet(), stay=False)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_all_to_all_moves_every_row_to_its_place(tmp_path_factory, data):
    """Row n from rank s to rank d is [s, d, n]; any number of rows, also none."""
    num_ranks = data.draw(st.integers(1, 4))
    rows_GG = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=num_ranks, max_size=num_ranks),
                                 min_size=num_ranks, max_size=num_ranks))  # fmt: skip
    lock, store = tmp_path_factory.mktemp("ranks") / "device_lock", dist.HashStore()

    def rows(source, target):
        return [[source, target, number] for number in range(rows_GG[source][target])]

    def run(rank):
        clock = VirtualClock(DeviceLock(lock, rank, num_ranks), HostClock())
        group = EmulatedGroup(store, rank, num_ranks, timedelta(seconds=5), clock, Network("none"))
        given = [row for target in range(num_ranks) for row in rows(rank, target)]
        arriving = [rows_GG[source][rank] for source in range(num_ranks)]
        output = torch.full((sum(arriving), 3), -1)
        splits, opts = (arriving, rows_GG[rank]), dist.AllToAllOptions()
        group.alltoall_base(output, torch.tensor(given).view(-1, 3).long(), *splits, opts).wait()
        return output.tolist()

    with ThreadPoolExecutor(num_ranks) as pool:
        found = list(pool.map(run, range(num_ranks)))
    expected = [[row for source in range(num_ranks) for row in rows(source, rank)] for rank in range(num_ranks)]
    assert found == expected
