import numpy as np
import pytest

from clusters.network import HierarchicalNetwork
from simulation.networks import Stretched, build_network, load_network


def test_nodes_are_composed_of_two_networks():
    nodes = load_network("nodes_h200")
    assert isinstance(nodes, HierarchicalNetwork) and nodes.ranks_per_node == 8
    assert nodes.intra == load_network("nvlink4") and nodes.inter == load_network("ib_ndr")


def test_stored_document_of_a_composed_network_is_built_too():
    link = {"_target_": "clusters.network.Network", "name": "link", "bandwidth_gbs": 1.0}
    nodes = {"_target_": "clusters.network.HierarchicalNetwork", "name": "n", "ranks_per_node": 2}
    built = build_network(nodes | {"intra": link, "inter": link | {"bandwidth_gbs": 0.5}})
    # 1 MB to each of 3 others: one inside the node at 1 GB/s, two outside at 0.5 GB/s.
    sent_GG = 1e6 * (1 - np.eye(4))
    assert built.seconds("all_to_all", built.volumes("all_to_all", sent_GG, range(4)), 4) == pytest.approx(4e-3)


def test_stretched_network_takes_longer_by_its_factor():
    network, sent_GG = load_network("nvlink4"), 1e6 * (1 - np.eye(4))
    slow = Stretched(network, 7)
    volumes = slow.volumes("all_gather", sent_GG, range(4))
    assert slow.seconds("all_gather", volumes, 4) == pytest.approx(7 * network.seconds("all_gather", volumes, 4))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="there is no network 'token_ring'; conf/network has"):
        load_network("token_ring")
    with pytest.raises(ValueError, match=r"network _target_ is 'os\.system'; it must be one of"):
        build_network({"_target_": "os.system", "command": "true"})
