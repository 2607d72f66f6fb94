"""Simulated times of whole layers against closed forms, on devices where one thing only takes time.

Two ranks of 6 tokens, 4 experts, D = 16, F = 32. Rank 0's tokens choose experts 0, 0, 0, 0, 2, 3, rank 1's
0, 0, 1, 0, 0, 0: with expert parallelism rank 0 has experts 0 and 1 and computes 4 + 6 rows, rank 1 has two.
"""

import pytest

from clusters.network import Network
from tests.clusters.simulated import systems_program
from tests.clusters.simulated.stub import Device, Host, call

D, F, ROW, COUNT = 16, 32, 64, 8  # widths; bytes of a row and of a count
PRODUCTS = 2 * D * F  # multiplications of a row in an expert
FREE = Network("free")


def layer(kind, device, network=FREE):
    return call(systems_program.layer_time, kind, device, network, 2, ranks=2)


def test_where_only_products_take_time_a_rank_is_done_when_its_rows_are_and_the_others_when_they_come_back():
    """The rows of the slower rank are waited for in the all-to-all on the way back."""
    assert layer("ep", Device(product_s=1)) == [10 * PRODUCTS] * 2


def test_sharding_shares_all_rows_equally():
    assert layer("moeshard", Device(product_s=1)) == [12 * PRODUCTS / 2] * 2


def test_where_only_bytes_on_the_link_take_time_expert_parallelism_is_its_exchanges():
    """One byte a second; a rank sends 2 counts, then rank 1 sends 6 rows and gets 2, then the reverse."""
    network = Network("bytes", bandwidth_gbs=1e-9)
    assert layer("ep", Device(), network) == pytest.approx([2 * COUNT + 6 * ROW + 6 * ROW] * 2)


def test_where_only_bytes_on_the_link_take_time_sharding_is_its_exchanges():
    """6 choices of 8 bytes (id and gate weight), 6 rows to the other rank, 6 rows of sums back."""
    network = Network("bytes", bandwidth_gbs=1e-9)
    assert layer("moeshard", Device(), network) == pytest.approx([6 * 8 + 6 * ROW + 6 * ROW] * 2)


def test_where_only_latency_takes_time_collectives_are_counted():
    network = Network("a second", base_us=1e6)
    assert layer("ep", Device(), network) == pytest.approx([3] * 2)  # counts, rows there, rows back
    assert layer("moeshard", Device(), network) == pytest.approx([3] * 2)  # choices, rows, sums


def test_products_and_link_add_up_because_nothing_overlaps():
    network = Network("bytes", bandwidth_gbs=1e-9)
    expected = 2 * COUNT + 12 * ROW + 10 * PRODUCTS
    assert layer("ep", Device(product_s=1), network) == pytest.approx([expected] * 2)


def test_where_only_synchronising_takes_time_each_reading_of_counts_is_one():
    """Expert parallelism reads what it sends and what it receives, and the loop engine its rows; sharding the last."""
    device = Device(host=Host(synchronise_us=1e6))
    assert layer("ep", device) == pytest.approx([3] * 2)
    assert layer("moeshard", device) == pytest.approx([1] * 2)


def test_where_only_issuing_takes_time_a_layer_is_as_long_as_its_operations_are_many():
    """Two products and a relu for each expert with rows; rank 1 of expert parallelism has two such experts too."""
    one, two = (layer("moeshard", Device(host=Host(operation_us=us))) for us in (1, 2))
    assert two == pytest.approx([2 * each for each in one]) and min(one) > 1e-6 * 4 * 3
