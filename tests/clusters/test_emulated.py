"""The emulated backend: scripted clocks, every collective, and ranks that fail."""

import json
import os

import pytest

from clusters.launch import LaunchFailed, launch
from clusters.session import ClusterSpec
from tests.clusters import rank_programs


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each of three ranks tells of each script: script -> time_s, exchanges. All run in one launch."""
    folder = tmp_path_factory.mktemp("scripts")
    launch(ClusterSpec("emulated", 3), rank_programs.scripted, str(folder))
    return [json.loads((folder / f"told.{rank}").read_text()) for rank in range(3)]


@pytest.mark.parametrize(
    ("script", "times_s"),
    [
        pytest.param("barrier", [13] * 3, id="ranks of 1, 2 and 3 s and a 10 s transfer make 13 s on all"),
        # The segments after a collective before the timed region are counted as ever.
        pytest.param("after_a_collective", [23] * 3, id="a collective before the timed region only takes its transfer"),
        pytest.param("late", [10 + 10 + 12 + 20] * 3, id="ranks that come apart may have a slower network"),
        pytest.param("overlap", [13] * 3, id="computation during a transfer overlaps"),
        pytest.param("hidden", [21, 22, 23], id="computation longer than a transfer hides it"),
        # 10 s each, one after the other: the second ends at 20 s, then 1 s of computation.
        pytest.param("busy_link", [21] * 3, id="a busy link delays the next transfer"),
        pytest.param("subgroups", [12, 12, 3], id="a subgroup does not wait for others"),
        pytest.param("waits_in_another_order", [20] * 3, id="ranks may wait in different orders"),
        pytest.param("volumes", [16 + 8 + 8 + 8 + 24] * 3, id="each collective takes the time of its bytes"),
        pytest.param("shared_link", [20, 20, 0], id="two groups of the same ranks share their link"),
        pytest.param("opposite_waits", [20, 20, 0], id="collectives run in the order of issue whoever waits first"),
    ],
)
def test_emulated_time_of_a_script(told, script, times_s):
    assert [of_rank[script]["time_s"] for of_rank in told] == pytest.approx(times_s)


def test_what_was_moved_when_is_told(told):
    """Links are free from 3 s, when rank 2 has issued: 10 s, then 10 s more; the broadcast a second later."""
    for rank in range(3):
        first, second, third = told[rank]["logged"]["exchanges"]
        names = ("resumed_s", "issued_s", "waited_s", "started_s", "finished_s")
        assert [first[name] for name in names] == pytest.approx([0, rank + 1, rank + 5, 3, 13])
        assert [second[name] for name in names] == pytest.approx([0, rank + 1, 13, 13, 23])
        assert [third[name] for name in names] == pytest.approx([23, 24, 24, 24, 34])
        assert [row["collective"] for row in (first, second, third)] == ["all_reduce", "all_reduce", "broadcast"]
        assert [row["asynchronous"] for row in (first, second, third)] == [True, True, False]
        assert first["sent_to_G"] == [0 if peer == rank else 8 for peer in range(3)] and first["received"] == 16
        assert third["sent_to_G"] == [8 if (rank, peer) in ((1, 0), (1, 2)) else 0 for peer in range(3)]
        assert third["received"] == (0 if rank == 1 else 8)


def test_as_many_ranks_as_share_a_host_compute_at_once(tmp_path):
    """Ranks 0 and 2 share a lock; rank 1 has one to itself."""
    launch(ClusterSpec("emulated", 3, concurrent_ranks=2), rank_programs.two_at_once, str(tmp_path))
    turns = [json.loads((tmp_path / f"turns.{rank}").read_text()) for rank in range(3)]
    for one, other, shared in ((0, 2, False), (0, 1, True)):
        overlaps = [min(a[1], b[1]) - max(a[0], b[0]) for a, b in zip(turns[one], turns[other], strict=True)]
        assert any(overlap > 0.05 for overlap in overlaps) if shared else all(overlap <= 0 for overlap in overlaps)


def test_collectives_move_the_data(tmp_path):
    launch(ClusterSpec("emulated", 3), rank_programs.every_collective, str(tmp_path))
    found = [json.loads((tmp_path / f"collectives.{rank}").read_text()) for rank in range(3)]
    base = [float(value) for value in range(6)]
    for rank, seen in enumerate(found):
        assert seen["all_reduce"] == [3 * value + 30 for value in base]
        assert seen["broadcast"] == [value + 10 for value in base]
        assert seen["all_gather"] == [value + 10 * source for source in range(3) for value in base]
        assert seen["all_to_all"] == [10.0 * source + 2 * rank + place for source in range(3) for place in range(2)]
        start = (0, 1, 3)[rank]
        assert seen["all_to_all_v"] == [
            10.0 * source + start + place for source in range(3) for place in range(rank + 1)
        ]


def test_an_exception_on_one_rank_is_the_reason_given(tmp_path):
    with pytest.raises(LaunchFailed, match=r"rank 1: RuntimeError: rank one has had enough") as caught:
        launch(ClusterSpec("emulated", 2), rank_programs.raise_on_rank_one, str(tmp_path))
    assert caught.value.kind == "failed" and caught.value.rank == 1
    assert "raise_on_rank_one" in caught.value.traceback


def test_a_rank_that_hangs_ends_the_launch_with_its_stack(tmp_path):
    with pytest.raises(LaunchFailed, match="no progress") as caught:
        launch(ClusterSpec("emulated", 2), rank_programs.hang_on_rank_one, str(tmp_path))
    assert caught.value.kind == "timeout" and "hang_on_rank_one" in caught.value.traceback


def test_a_rank_that_dies_with_the_lock_does_not_hang_the_others(tmp_path):
    with pytest.raises(LaunchFailed, match=r"rank 1 died with exit code 3|a rank died without an exception"):
        launch(ClusterSpec("emulated", 2), rank_programs.die_holding_the_lock, str(tmp_path))


def test_every_collective_moves_what_gloo_moves(tmp_path):
    launch(ClusterSpec("emulated", 4), rank_programs.like_gloo, str(tmp_path))


def test_large_strided_and_asynchronous_tensors_several_groups_and_refusals(tmp_path):
    launch(ClusterSpec("emulated", 4), rank_programs.hard_cases, str(tmp_path))


def test_a_killed_rank_ends_the_launch_and_leaves_nothing_behind(tmp_path):
    def shared():  # but for the semaphores of whatever else runs here
        return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}

    before = shared()
    with pytest.raises(LaunchFailed, match=r"rank 1 died with exit code -9|a rank died without an exception"):
        launch(ClusterSpec("emulated", 3), rank_programs.killed_in_a_collective, str(tmp_path))
    assert shared() <= before
    assert all(path.name.startswith("device_lock") for path in tmp_path.iterdir())


def test_a_rank_that_is_late_ends_the_launch_with_its_number(tmp_path):
    with pytest.raises(LaunchFailed, match=r"rank 1 of the group has not come to a collective within 2 s"):
        launch(ClusterSpec("emulated", 2), rank_programs.late_for_a_collective, str(tmp_path))
