from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from clusters.network import COLLECTIVES, HierarchicalNetwork, Network
from experiments.configuration import instantiate

CONF = Path(__file__).parents[2] / "conf" / "network"


def load(path: Path) -> Any:
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    return instantiate(node)


NETWORKS = {
    path.stem: load(path)
    for path in sorted(CONF.glob("*.yaml"))
    if not path.stem.startswith(("nodes_", "matched", "device"))
}
# 0 us for no bytes, 10 us for 1000, 30 us for 3000 and then 2 GB/s: 0.5 us for another 1000.
TABLE = Network("table", points=((0, 0), (1000, 10), (3000, 30)), bandwidth_gbs=2)


@pytest.mark.parametrize(
    ("volume", "microseconds"),
    [(0, 0), (500, 5), (1000, 10), (2000, 20), (3000, 30), (4000, 30.5), (1e9 + 3000, 500_030)],
)
def test_linear_between_points_and_bandwidth_beyond(volume, microseconds):
    assert TABLE.seconds("all_gather", [volume], 4) == pytest.approx(microseconds * 1e-6, rel=1e-12)


def test_slope_changes_at_a_point():
    bent = Network("bent", points=((0, 0), (100, 50), (200, 60)))
    assert bent.seconds("all_gather", [50], 2) == pytest.approx(25e-6)
    assert bent.seconds("all_gather", [150], 2) == pytest.approx(55e-6)
    assert bent.seconds("all_gather", [1e12], 2) == pytest.approx(60e-6)  # infinite bandwidth


def test_latency_is_a_base_and_a_hop_for_each_step():
    network = Network("latency", base_us=6.6, hop_us=0.6, bandwidth_gbs=100)
    assert network.seconds("barrier", [0], 2) == pytest.approx(7.2e-6)
    assert network.seconds("all_gather", [0], 4) == pytest.approx(8.4e-6)
    assert network.seconds("all_reduce", [1e6], 4) == pytest.approx(20.2e-6)  # two rounds of the ring
    assert network.seconds("all_reduce", [1e6], 1) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"points": ((0, 0), (5, 1), (3, 2))},
            r"network n: points must ascend from 0 bytes or more, got sizes \[0, 5, 3\]",
        ),
        ({"points": ((0, 0), (5, 1), (5, 2))}, r"got sizes \[0, 5, 5\]"),
        ({"points": ((1, 0),)}, "points must start at 0 bytes, got 1"),
        ({"tables": {"gossip": {2: ((0, 1),)}}}, "no collective is called 'gossip'; they are all_gather, "),
        ({"tables": {"all_gather": {2: ((5, 1), (0, 2))}}}, r"tables.all_gather.2 must ascend .* sizes \[5, 0\]"),
        ({"points": ()}, r"got sizes \[\]"),
        ({"bandwidth_gbs": 0}, "network n: bandwidth_gbs must be positive, got 0"),
        ({"bandwidth_gbs": -3.5}, r"bandwidth_gbs must be positive, got -3\.5"),
    ],
)
def test_bad_constants_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Network("n", **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_file_says_its_own_name_and_where_its_constants_are_from(name):
    assert NETWORKS[name].name == name
    assert NETWORKS[name].source or name == "none"


@given(
    st.sampled_from(sorted(NETWORKS)),
    st.sampled_from(COLLECTIVES),
    st.floats(0, 1e11),
    st.floats(0, 1e11),
    st.sampled_from([(8, 8), (8, 16), (16, 64)]),
)
def test_more_bytes_and_more_ranks_never_take_less(name, collective, bytes_one, bytes_two, ranks):
    (fewer, more), (near, far), network = sorted([bytes_one, bytes_two]), ranks, NETWORKS[name]
    if getattr(network, "tables", None):  # measured with few ranks only
        near = far = min(network.tables["all_gather"])
    kinds = 2 if isinstance(network, HierarchicalNetwork) else 1
    times = [
        network.seconds(collective, [volume] * kinds, n) for volume, n in ((fewer, near), (more, near), (more, far))
    ]
    assert 0 <= times[0] <= times[1] <= times[2]


@given(st.floats(0, 1e11), st.integers(1, 16))
def test_without_a_network_collectives_are_free(volume, ranks):
    assert NETWORKS["none"].seconds("all_to_all", [volume], ranks) == 0


MEASURED = Network(
    "measured", base_us=1e6, tables={"all_gather": {"2": ((0, 10), (100, 20), (200, 40))}, "all_reduce": {2: ((4, 7),)}}
)


@pytest.mark.parametrize(("volume", "microseconds"), [(0, 10), (50, 15), (150, 30), (200, 40), (300, 60)])
def test_a_measured_table_decides_and_goes_on_with_its_last_slope(volume, microseconds):
    assert MEASURED.seconds("all_gather", [volume], 2) == pytest.approx(microseconds * 1e-6)


def test_a_barrier_is_the_smallest_all_reduce_that_was_measured():
    assert MEASURED.seconds("barrier", [0], 2) == pytest.approx(7e-6)


def test_a_collective_without_a_table_takes_the_model_of_the_link():
    assert MEASURED.seconds("broadcast", [0], 4) == pytest.approx(1.0)


def test_a_rank_alone_is_never_late():
    assert replace(MEASURED, late=MEASURED).when("all_gather", [0], 1.0).seconds("all_gather", [0], 1) == 0


@pytest.mark.parametrize("late", [Network("bare"), Network("few", tables={"all_gather": {2: ((0, 10),)}})])
def test_a_late_network_that_measured_something_else_is_refused(late):
    with pytest.raises(ValueError, match="network measured: late must have tables of the same collectives"):
        replace(MEASURED, late=late)


def test_nodes_of_networks_that_tell_late_ranks_are_refused():
    with pytest.raises(ValueError, match="network nodes: networks of nodes do not tell ranks that come late"):
        HierarchicalNetwork("nodes", 2, TABLE, replace(TABLE, late=TABLE))


def test_ranks_that_were_not_measured_are_refused():
    with pytest.raises(ValueError, match="network measured was measured with 2 ranks, not 4; measure it"):
        MEASURED.seconds("all_gather", [0], 4)


def test_an_uneven_exchange_is_as_slow_as_the_rank_that_moves_most():
    sent_GG = np.array([[0, 1, 2], [5, 0, 0], [4, 0, 0]])  # rank 0 receives 9
    assert TABLE.volumes("all_to_all", sent_GG, [0, 1, 2]) == (9,)
    assert TABLE.volumes("broadcast", np.array([[0, 7, 7], [0, 0, 0], [0, 0, 0]]), [0, 1, 2]) == (7,)


def test_sending_and_receiving_may_share_what_moves_the_data():
    sent_GG = np.array([[0, 2], [6, 0]])  # each rank moves 8 in all, 6 one way
    for duplex, volume in ((1.0, 6), (0.5, 5), (0.0, 4)):
        assert Network("n", duplex=duplex).volumes("all_to_all", sent_GG, [0, 1]) == (volume,)
        assert Network("n", duplex=duplex).volumes("all_to_all", sent_GG + sent_GG.T, [0, 1]) == (8,)
        assert Network("n", duplex=duplex).volumes("all_gather", sent_GG, [0, 1]) == (6,)
    with pytest.raises(ValueError, match="network n: duplex must be between 0 and 1, got 2"):
        Network("n", duplex=2)


NODES = HierarchicalNetwork(
    "nodes",
    2,
    intra=Network("near", base_us=1, bandwidth_gbs=1e-3),
    inter=Network("far", base_us=10, bandwidth_gbs=1e-4),
)


def test_an_all_to_all_splits_into_pairs_inside_nodes_and_across():
    sent_GG = np.arange(16).reshape(4, 4) * (1 - np.eye(4))
    assert NODES.volumes("all_to_all", sent_GG, [0, 1, 2, 3]) == (
        14,
        25,
    )  # rank 3 sends 14 to its fellow, 12 + 13 to the other node
    assert NODES.volumes("all_to_all", sent_GG[:2, :2], [2, 3]) == (4, 0)  # one node
    with pytest.raises(ValueError, match=r"ranks \[0, 2, 4, 6\] are neither in one node nor all of several nodes of 2"):
        NODES.volumes("all_to_all", sent_GG, [0, 2, 4, 6])


def test_an_all_gather_crosses_between_nodes_once():
    sent_GG = 100 * (1 - np.eye(4))
    assert NODES.volumes("all_gather", sent_GG, [0, 1, 2, 3]) == pytest.approx((200, 100))


def test_a_broadcast_enters_a_node_in_parts():
    sent_GG = np.zeros((4, 4))
    sent_GG[0, 1:] = 100
    assert NODES.volumes("broadcast", sent_GG, [0, 1, 2, 3]) == (100, 50)


def test_both_kinds_of_link_work_at_once_and_the_slower_one_decides():
    assert NODES.seconds("all_gather", [200, 100], 4) == pytest.approx((1 + 10 + 1000) * 1e-6)  # 200 us near, 1000 far
    assert NODES.seconds("all_gather", [200, 0], 2) == pytest.approx((1 + 200) * 1e-6)  # one node


def test_ranks_per_node_is_checked():
    with pytest.raises(ValueError, match="network n: ranks_per_node is 0; it must be at least 1"):
        HierarchicalNetwork("n", 0, intra=TABLE, inter=TABLE)


def test_published_points_are_met():
    """Vidur's all-reduces of 64 MiB on 4 GPUs (V = 1.5 n, 6 hops) and the authors' reduce-scatter, as the files say."""
    assert NETWORKS["nvlink3"].seconds("all_reduce", [1.5 * 2**26], 4) == pytest.approx(589e-6, rel=0.01)
    assert NETWORKS["nvlink4"].seconds("all_reduce", [1.5 * 2**26], 4) == pytest.approx(306e-6, rel=0.01)
    assert NETWORKS["pcie4"].seconds("all_reduce", [1.5 * 2**26], 4) == pytest.approx(4136e-6, rel=0.01)
    assert NETWORKS["nvlink3_paper"].seconds("reduce_scatter", [276e6], 4) == pytest.approx(1.7e-3, rel=0.02)
