"""GShard's gating: capacity, first choices before second ones, normalised gates."""

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
from systems.gshard import GShard, gshard_capacity
from tests.systems.naive import draw, keep_first, layer

SHAPE = LayerShape(num_experts=4, d_model=2, d_ff=4, max_tokens=10)


def normalised(routing: Routing) -> Routing:
    if routing.expert_TK.shape[1] == 1:
        return routing
    first_T, second_T = routing.weight_TK.unbind(1)
    return replace(routing, weight_TK=torch.stack([first_T, second_T], 1) / (first_T + second_T).unsqueeze(1))


@pytest.mark.parametrize(
    ("top_k", "factor", "expected"),
    [(2, 1.0, 5), (1, 1.0, 3), (1, 2, 5), (2, 0.5, 3), (1, 0.01, 1)],  # 2T/E = 5, T/E = 2.5
)
def test_capacity_by_hand(top_k, factor, expected):
    assert gshard_capacity(replace(SHAPE, top_k=top_k), factor) == expected


def test_padding_is_that_of_the_capacity():
    assert GShard.padding(SHAPE, 2, capacity_factor=1.0) == 4 * 3 / 10
    assert GShard.padding(replace(SHAPE, top_k=2), 2, capacity_factor=2.0) == 2


@pytest.mark.parametrize("factor", [0, -1.0])
def test_bad_capacity_factor_is_named(factor):
    with pytest.raises(ValueError, match=r"system\.capacity_factor is .*; it must be a positive number"):
        GShard.check(SHAPE, 2, capacity_factor=factor)


def test_more_than_two_choices_are_refused():
    with pytest.raises(ValueError, match="gshard has top-1 or top-2 routing, got top_k = 3"):
        GShard.check(replace(SHAPE, top_k=3), 2, capacity_factor=1.0)


def test_top_2_by_hand(one_rank):
    """Two experts, three tokens, C = ceil(2 * 3 / 2 * 0.5) = 2: expert 0 is first for 1 and 2, expert 1 for 0."""
    x_TD, _ = draw(3, 2, 2, seed=0)
    routing = Routing(torch.tensor([[1, 0], [0, 1], [0, 1]]), torch.tensor([[0.6, 0.2], [0.3, 0.1], [0.5, 0.5]]))
    built = layer(2, 3, 2, one_rank)
    y_TD = GShard(capacity_factor=0.5, **built).forward(x_TD, routing)
    # Dropped: expert 0 as second choice of token 0, expert 1 as second choice of token 2.
    weight_TK = torch.tensor([[0.75, 0.0], [0.75, 0.25], [0.5, 0.0]])
    torch.testing.assert_close(y_TD, Dense(**built).forward(x_TD, replace(routing, weight_TK=weight_TK)))


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("num_tokens", [1, 11, 40])
def test_enough_capacity_is_dense(one_rank, top_k, num_tokens):
    x_TD, routing = draw(num_tokens, 4, top_k, seed=num_tokens)
    built = layer(4, 40, top_k, one_rank)
    y_TD = GShard(capacity_factor=4, **built).forward(x_TD, routing)
    torch.testing.assert_close(y_TD, Dense(**built).forward(x_TD, normalised(routing)))


def test_two_ranks_keep_what_comes_first(tmp_path):
    """Copy by copy, for top-1 and top-2; rank 1 may bring no token."""
    node = {"_target_": "systems.gshard.GShard", "name": "gshard", "engine": None}
    judge({"gshard": node}, ClusterSpec("gloo", 2), tmp_path, {"gshard": 2})
    for rank in range(2):
        outputs = load_file(tmp_path / f"outputs.{rank}.safetensors")
        for case in (case for case in cases(2) if case.activation == "relu"):  # of which `keep_first` is
            x_TD, routing = case.draw(rank)
            expected_TD = keep_first(x_TD, normalised(routing), case.num_experts, gshard_capacity(case.shape, 1.0))
            np.testing.assert_allclose(
                outputs[f"gshard/{case.name}"], expected_TD, rtol=1e-4, atol=1e-5, err_msg=case.name
            )
