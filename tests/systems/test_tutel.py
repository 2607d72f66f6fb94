"""Tutel's capacity, and that neither r nor the overlap degree changes what is computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from clusters.session import ClusterSpec
from experiments.conformance import cases, judge
from routers.base import Routing
from systems.base import LayerShape
from systems.dense import Dense
from systems.tutel import Tutel, tutel_capacity
from tests.systems.naive import draw, keep_first, layer

SHAPE = LayerShape(num_experts=4, d_model=2, d_ff=4, max_tokens=10)  # ceil(10 / 4) = 3 tokens an expert


@pytest.mark.parametrize(
    ("top_k", "factor", "degree", "largest", "expected"),
    [
        (1, 1.0, 1, 9, 3),
        (1, 1.5, 1, 9, 4),  # int(4.5), where DeepSpeed rounds up
        (2, 1.5, 1, 9, 8),
        (1, 1.5, 8, 9, 8),
        (1, 0.1, 1, 9, 1),  # at least one slot
        (1, 0, 1, 9, 9),
        (1, 0, 4, 9, 12),
        (1, 0, 2, 0, 2),  # no tokens anywhere
        (1, -1.5, 1, 9, 4),
        (1, -1.5, 1, 2, 2),
        (2, -1.5, 2, 7, 8),
    ],
)
def test_capacity_by_hand(top_k, factor, degree, largest, expected):
    assert tutel_capacity(replace(SHAPE, top_k=top_k), factor, degree, largest) == expected


def test_padding_is_known_where_the_capacity_is():
    def padding(**options: float) -> float:
        return Tutel.padding(SHAPE, 2, **Tutel.every_option(**options))

    assert padding() == padding(capacity_factor=-2.0) == 1
    assert padding(capacity_factor=2.0) == 4 * 6 / 10
    assert padding(capacity_factor=2.0, overlap_degree=4) == 4 * 8 / 10


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"overlap_degree": 3}, r"system\.overlap_degree is 3; it must be 1, 2, 4 or 8"),
        ({"r": 2}, r"system\.r is 2; it must be 0 \(weights travel\) or 1 \(tokens travel\)"),
        ({"r": 0, "overlap_degree": 2}, r"system\.overlap_degree is 2; it must be 1 where system\.r is 0"),
    ],
)
def test_bad_options_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Tutel.check(SHAPE, 2, **Tutel.every_option(**options))


@pytest.mark.parametrize("world_size", [2, 4])
def test_neither_r_nor_overlap_changes_what_is_computed(world_size, tmp_path):
    """capacity_factor 4: C = 24, 12, 8 for each choice, which no overlap degree here rounds up."""
    node = {"_target_": "systems.tutel.Tutel", "engine": None, "capacity_factor": 4}
    systems = {
        **{f"overlap_{degree}": {**node, "name": "tutel", "overlap_degree": degree} for degree in (1, 2, 4)},
        "gathered": {**node, "name": "tutel", "r": 0},
    }
    judge(systems, ClusterSpec("gloo", world_size), tmp_path, dict.fromkeys(systems, 2))
    for rank in range(world_size):
        outputs = load_file(tmp_path / f"outputs.{rank}.safetensors")
        for case in (case for case in cases(2) if case.activation == "relu"):  # of which `keep_first` is
            expected_TD = outputs[f"overlap_1/{case.name}"]
            for name in systems:
                np.testing.assert_allclose(outputs[f"{name}/{case.name}"], expected_TD, atol=1e-6, err_msg=case.name)
            capacity = case.top_k * 4 * -(-24 // case.num_experts)
            naive_TD = keep_first(*case.draw(rank), case.num_experts, capacity)
            np.testing.assert_allclose(expected_TD, naive_TD, atol=1e-5, err_msg=case.name)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("options", [{}, {"capacity_factor": 4.0}, {"capacity_factor": -4.0}, {"overlap_degree": 8}])
def test_enough_capacity_is_dense(one_rank, top_k, options):
    x_TD, routing = draw(11, 4, top_k, seed=top_k)
    built = layer(4, 11, top_k, one_rank)
    expected_TD = Dense(**built).forward(x_TD, routing)
    torch.testing.assert_close(Tutel(**options, **built).forward(x_TD, routing), expected_TD)


@pytest.mark.parametrize("options", [{}, {"overlap_degree": 2}, {"r": 0}, {"capacity_factor": 1.0}])
def test_no_tokens_anywhere(one_rank, options):
    routing = Routing(torch.empty(0, 1, dtype=torch.int64), torch.empty(0, 1))
    y_TD = Tutel(**options, **layer(4, 11, 1, one_rank)).forward(torch.empty(0, 16), routing)
    assert y_TD.shape == (0, 16)
