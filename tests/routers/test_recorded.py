import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.recorded import layers_of, parts_of, spread


@pytest.mark.parametrize(
    ("num_blocks", "layers"), [(1, [0]), (2, [0, 5]), (3, [0, 2, 5]), (6, [0, 1, 2, 3, 4, 5]), (0, [])]
)
def test_spread_over_six_layers(num_blocks, layers):
    assert spread(num_blocks, 6) == layers


@given(st.integers(2, 40), st.integers(1, 40))
def test_spread_keeps_order_and_both_ends(num_blocks, num_layers):
    layers = spread(num_blocks, num_layers)
    assert len(layers) == num_blocks and layers == sorted(layers)
    assert (layers[0], layers[-1]) == (0, num_layers - 1)


def test_blocks_get_the_layers_asked_for_or_evenly_spaced_ones():
    assert layers_of([1, 3], [0, 4, 8], None) == {1: 0, 3: 8}
    assert layers_of([1, 3], [0, 4, 8], [4, 4]) == {1: 4, 3: 4}


def test_the_last_share_of_a_record_is_held_out():
    measured, held_out = parts_of(np.arange(12), 0.25)
    assert (measured.tolist(), held_out.tolist()) == ([0, 1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11])
    assert [part.tolist() for part in parts_of(np.arange(2), 0)] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("share", [1, -0.1, "half", True, 0.99])
def test_a_share_that_leaves_nothing_is_named(share):
    with pytest.raises(ValueError, match=r"^router\.held_out is .*; it must be a share of the record, at least 0"):
        parts_of(np.arange(12), share)
