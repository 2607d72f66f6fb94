from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from clusters.network import Network
from experiments.cells import instantiate

CONF = Path(__file__).parents[2] / "conf" / "network"


def load(path: Path) -> Network:
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    return instantiate(node)


NETWORKS = {path.stem: load(path) for path in sorted(CONF.glob("*.yaml"))}
# 0 us for no bytes, 10 us for 1000, 30 us for 3000 and then 2 GB/s: 0.5 us for another 1000.
TABLE = Network("table", points=((0, 0), (1000, 10), (3000, 30)), bandwidth_gbs=2)


@pytest.mark.parametrize(
    ("volume", "microseconds"),
    [(0, 0), (500, 5), (1000, 10), (2000, 20), (3000, 30), (4000, 30.5), (1e9 + 3000, 500_030)],
)
def test_linear_between_points_and_bandwidth_beyond(volume, microseconds):
    assert TABLE.seconds(volume, hops=3) == pytest.approx(microseconds * 1e-6, rel=1e-12)


def test_slope_changes_at_a_point():
    bent = Network("bent", points=((0, 0), (100, 50), (200, 60)))
    assert bent.seconds(50, hops=0) == pytest.approx(25e-6)
    assert bent.seconds(150, hops=0) == pytest.approx(55e-6)
    assert bent.seconds(1e12, hops=0) == pytest.approx(60e-6)  # infinite bandwidth


def test_latency_is_a_base_and_a_hop_for_each_step():
    network = Network("latency", base_us=6.6, hop_us=0.6, bandwidth_gbs=100)
    assert network.seconds(0, hops=0) == pytest.approx(6.6e-6)
    assert network.seconds(0, hops=3) == pytest.approx(8.4e-6)
    assert network.seconds(1e6, hops=6) == pytest.approx(20.2e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"points": ((0, 0), (5, 1), (3, 2))},
            r"network n: points must start at 0 bytes and ascend, got sizes \[0, 5, 3\]",
        ),
        ({"points": ((0, 0), (5, 1), (5, 2))}, r"got sizes \[0, 5, 5\]"),
        ({"points": ((1, 0),)}, r"got sizes \[1\]"),
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
    st.sampled_from(sorted(NETWORKS)), st.floats(0, 1e11), st.floats(0, 1e11), st.integers(0, 14), st.integers(0, 14)
)
def test_more_bytes_and_more_hops_never_take_less(name, bytes_one, bytes_two, hops_one, hops_two):
    fewer, more = sorted([bytes_one, bytes_two])
    near, far = sorted([hops_one, hops_two])
    network = NETWORKS[name]
    assert 0 <= network.seconds(fewer, near) <= network.seconds(more, near) <= network.seconds(more, far)


@given(st.floats(0, 1e11), st.integers(0, 14))
def test_without_a_network_collectives_are_free(volume, hops):
    assert NETWORKS["none"].seconds(volume, hops) == 0


def test_published_points_are_met():
    """Vidur's all-reduces of 64 MiB on 4 GPUs (V = 1.5 n, 6 hops) and the authors' reduce-scatter, as the files say."""
    assert NETWORKS["nvlink3"].seconds(1.5 * 2**26, hops=6) == pytest.approx(589e-6, rel=0.01)
    assert NETWORKS["nvlink4"].seconds(1.5 * 2**26, hops=6) == pytest.approx(306e-6, rel=0.01)
    assert NETWORKS["pcie4"].seconds(1.5 * 2**26, hops=6) == pytest.approx(4136e-6, rel=0.01)
    assert NETWORKS["nvlink3_paper"].seconds(276e6, hops=3) == pytest.approx(1.7e-3, rel=0.02)
