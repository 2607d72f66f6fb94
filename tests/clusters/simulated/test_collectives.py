"""Collectives of simulated ranks: what they bring, when, and what is refused. Times are worked out by hand."""

import re

import pytest

from clusters.network import HierarchicalNetwork, Network
from tests.clusters.simulated import programs
from tests.clusters.simulated.stub import Device, Host, simulate

TEN_SECONDS = Network("ten seconds", base_us=10e6)
BYTE_A_SECOND = Network("bytes", bandwidth_gbs=1e-9)


def test_ranks_of_1_2_and_3_s_and_a_10_s_transfer_make_13_s_on_all():
    assert simulate(programs.barrier, network=TEN_SECONDS).results == [13, 13, 13]


def test_ranks_that_come_apart_may_have_a_slower_network():
    """The last comes 2 s after the first, the latency is 1 s."""
    network = Network("one second", base_us=1e6, late=Network("twenty seconds", base_us=20e6))
    assert simulate(programs.barrier, network=network).results == [23, 23, 23]


@pytest.mark.parametrize(("work_s", "expected"), [(4, [13, 13, 13]), (20, [21, 22, 23])])
def test_computation_during_a_transfer_overlaps(work_s, expected):
    """The link is busy from 3 to 13 s."""
    assert simulate(programs.overlap, work_s, network=TEN_SECONDS).results == expected


def test_a_host_that_is_the_device_overlaps_too():
    device = Device(host=Host(synchronous=True))
    ran = simulate(programs.overlap, 4, network=TEN_SECONDS, device=device)
    assert ran.results == [13, 13, 13] and [host_s for host_s, _, _ in ran.times] == [13, 13, 13]


def test_a_busy_link_delays_the_next_transfer():
    """10 s each, one after the other: the second ends at 20 s, then 1 s of computation."""
    ran = simulate(programs.busy_link, network=TEN_SECONDS)
    assert ran.results == [21, 21, 21]
    links = [(event.start_s, event.seconds) for event in ran.events[0] if event.track == "link"]
    assert links == [(0, 10), (10, 10)]


def test_a_subgroup_does_not_wait_for_others():
    assert simulate(programs.subgroups, network=TEN_SECONDS).results == [12, 12, 3]


def test_two_groups_of_the_same_ranks_share_their_link_whoever_waits_first():
    assert simulate(programs.two_groups, network=TEN_SECONDS).results == [20, 20, 0]


def test_links_within_a_node_and_between_nodes_work_at_once_and_each_is_told_when_it_is_waited_for():
    """Within from 0 to 2 s, then 3 s of work, and from 5 s on the other is waited for, which ends at 10 s."""
    network = HierarchicalNetwork("nodes", 2, Network("in", base_us=2e6), Network("between", base_us=10e6))
    ran = simulate(programs.two_links, network=network, ranks=4)
    assert ran.failure is None
    assert ran.results == [[[0, 0, 0, 2], [1, 0, 5, 10], [10]]] * 4


def test_groups_that_share_ranks_follow_one_another():
    assert simulate(programs.overlapping_groups, network=TEN_SECONDS).results == [30, 20, 30]


def test_each_collective_takes_the_time_of_its_bytes():
    """12 B all-reduced 2/3 of it twice; 4 B from each; 4 B from each; 4 B to each; rank 2 receives 24 B; 8 B."""
    expected = [16, 24, 32, 40, 64, 72]
    assert simulate(programs.volumes, network=BYTE_A_SECOND).results == [pytest.approx(expected)] * 3


def test_what_was_moved_when_is_told_to_who_waits():
    """As emulated ranks tell it: the link is free from 3 s, the first of two is waited for with the second."""
    for rank, (first, second, third) in enumerate(simulate(programs.told, network=TEN_SECONDS).results):
        names = ("resumed_s", "issued_s", "waited_s", "started_s", "finished_s")
        assert [first[name] for name in names] == [0, rank + 1, rank + 5, 3, 13]
        assert [second[name] for name in names] == [0, rank + 1, 13, 13, 23]
        assert [third[name] for name in names] == [23, 24, 24, 24, 34]
        assert first["sent_to_G"] == [0 if other == rank else 8 for other in range(3)]
        assert first["received"] == 16 and first["asynchronous"] and not third["asynchronous"]
        assert third["sent_to_G"] == ([8, 0, 8] if rank == 1 else [0, 0, 0])
        assert third["received"] == (0 if rank == 1 else 8)


def test_ranks_begin_an_iteration_together():
    assert simulate(programs.aligned).results == [(3, 2)] * 3


def test_issuing_costs_the_host_and_the_device_waits_for_it():
    """Ranks of 1, 2, 3 s whose hosts need 5 s to issue: 5 s, then 10 s."""
    ran = simulate(programs.barrier, device=Device(host=Host(collective_us=5e6)), network=TEN_SECONDS)
    assert ran.results == [15, 15, 15]
    assert [event[1:] for event in ran.events[2] if event.track == "host"][-1] == ("barrier", 0, 5)


X_GN = [[10 * rank + i for i in range(6)] for rank in range(3)]


def test_collectives_bring_what_they_should():
    results = simulate(programs.collectives).results
    for rank, found in enumerate(results):
        assert found["all_reduce"] == [[30 + 3 * i for i in range(6)], X_GN[2], X_GN[0]]
        assert found["broadcast"] == X_GN[1]
        assert found["all_gather of a list"] == [value for x in X_GN for value in x]
        assert found["all_gather"] == [row for x in X_GN for row in (x[:3], x[3:])]
        assert found["reduce_scatter"] == [30 + 3 * (2 * rank), 30 + 3 * (2 * rank + 1)]
        assert found["all_to_all"] == [x[2 * rank + i] for x in X_GN for i in range(2)]
        begin, end = (0, 1, 3, 6)[rank : rank + 2]
        assert found["from rank 0 only"] == [X_GN[0][2 * rank : 2 * rank + 2]]
        assert found["all_to_all_v"] == [value for x in X_GN for value in x[begin:end]]
        begin, end = (0, 0, 2, 6)[rank : rank + 2]
        assert found["nothing for rank 0"] == [value for x in X_GN for value in x[begin:end]]
        assert found["into a part"] == [[0] * 6, *X_GN]
        assert found["through a view"] == [30 + 3 * i if i % 2 else 10 * rank + i for i in range(6)]
        assert found["asynchronous"] == [3]


def test_what_is_sent_is_what_was_there_when_it_was_sent():
    assert simulate(programs.sent_before_it_changes).results == [[0, 1, 2, 100 + rank] for rank in range(3)]


REFUSED = {
    programs.asks_for_an_activation: "NoValues: a simulated rank asks for the values of an activation or a weight, "
    "which have shapes only; use another router or system, or cluster=emulated; on simulated rank 1",
    programs.gathered_activations: "NoValues: a simulated rank asks .* on simulated rank 0",
    programs.of_other_sizes: "ValueError: all_gather: rank 1 of the group expects 8 bytes from rank 0, which sends 4",
    programs.of_other_kinds: "ValueError: the ranks of one group call different collectives at once: "
    "all_reduce, broadcast",
    programs.splits_that_are_no_rows: r"ValueError: all_to_all: 5 rows are not \[1, 1, 1\] for 3 ranks",
    programs.splits_that_do_not_match: "ValueError: all_to_all: rank 0 of the group expects 8 bytes from rank 0, "
    "which sends 4",
    programs.output_of_another_size: "ValueError: all_gather: 8 elements are not those of 3 ranks with 3 each",
    programs.input_of_another_size: "ValueError: reduce_scatter: 3 elements are not those of 3 ranks with 2 each",
    programs.another_reduction: "ValueError: simulated ranks reduce with SUM, PRODUCT, MIN, MAX, BAND, BOR, BXOR; "
    "not with AVG",
    programs.one_never_calls: "RuntimeError: rank 0 waits for ever: not all ranks of its group call the all_reduce",
    programs.crossed_waits: "RuntimeError: rank . waits for ever: not all ranks of its group call the all_reduce",
    programs.does_not_align: "RuntimeError: rank 0 waits for ever: other ranks do not begin the same iteration",
    programs.fails_on_rank_one: "KeyError: 'rank one has had enough'; on simulated rank 1",
}


@pytest.mark.parametrize("program", REFUSED, ids=lambda program: program.__name__)
def test_what_cannot_work_ends_with_one_sentence(program):
    failure = simulate(program).failure
    assert failure is not None
    assert re.match(REFUSED[program], failure), failure
    assert simulate(programs.barrier).failure is None  # and the next program runs


@pytest.mark.parametrize("seed", range(5))
def test_the_same_program_leaves_the_same_bytes(seed):
    device = Device(host=Host(operation_us=3, view_us=1, collective_us=7, synchronise_us=2), byte_s=1e-7, kernel_s=1e-6)
    network = Network("some", base_us=10, bandwidth_gbs=0.1)
    first, second = (simulate(programs.many, seed, device=device, network=network) for _ in range(2))
    assert first.failure is None and len(first.events[0]) > 50
    assert repr(first) == repr(second)
