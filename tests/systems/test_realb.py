"""ReaLB: which ranks are lowered, and what their rows lose."""

import pytest
import torch

from systems.engines import ACTIVATIONS
from systems.engines.activations import expert_ffn
from systems.expert_parallel import ExpertParallel
from systems.low_precision import low_ffn, lowered, rounded
from systems.realb import ReaLB, overloaded
from tests.systems.naive import draw, layer, seeded_weights

LOADS_GP = torch.tensor([[20, 0], [10, 20], [8, 0], [2, 0]])  # rows of text and of images: 20, 30, 8, 2, mean 15
RULE = {"overload": 1.0, "least_rows": 0, "image_share": 0.0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [True, True, False, False]),
        ({"overload": 1.5}, [False, True, False, False]),
        ({"overload": 2.0}, [False] * 4),
        ({"least_rows": 60}, [False] * 4),
        ({"least_rows": 59}, [True, True, False, False]),
        ({"image_share": 0.6}, [False, True, False, False]),
        ({"image_share": 0.7}, [False] * 4),
    ],
)
def test_overloaded_ranks_are_lowered(options, expected):
    assert overloaded(LOADS_GP, **RULE | options).tolist() == expected


def test_even_loads_are_left_alone():
    assert not overloaded(torch.tensor([[3, 0]] * 8), **RULE).any()


@pytest.mark.parametrize(("precision", "step"), [("fp8", 2**-4), ("bf16", 2**-8)])
def test_numbers_are_rounded_by_half_a_step_of_their_own_row(precision, step):
    x_TD = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50).unsqueeze(1)
    found = rounded(x_TD, precision, 1)
    error_TD = (found.numbers.float() * found.scale.unsqueeze(1) - x_TD).abs()
    subnormal_T1 = x_TD.abs().amax(1, keepdim=True) * 2**-16
    assert (error_TD <= step * x_TD.abs() + subnormal_T1).all()
    assert error_TD.max() > 0


@pytest.mark.parametrize(("precision", "worst"), [("fp8", 0.1), ("bf16", 0.01)])
def test_experts_in_few_bits_are_near_the_whole_ones(precision, worst):
    weights = seeded_weights(4).experts([0, 1, 2, 3])
    x_ND = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    rows_e, activation = torch.tensor([5, 0, 20, 5]), ACTIVATIONS["relu"]
    y_ND = low_ffn(x_ND, rows_e, lowered(weights, precision), activation)
    parts = zip(x_ND.split(rows_e.tolist()), *weights, strict=True)
    exact_ND = torch.cat([expert_ffn(x_RD, activation, wi, wo) for x_RD, wi, wo in parts])
    error = float((y_ND - exact_ND).norm() / exact_ND.norm())
    assert 0 < error < worst


def test_weights_and_balanced_batches_are_not_touched(one_rank):
    """One rank is never above the mean: the result is plain expert parallelism's."""
    given = layer(8, 40, 2, one_rank)
    x_TD, routing = draw(40, 8, 2, 0)
    system = ReaLB(least_tokens=0, **given)
    before = [weight.clone() for weight in system._whole]
    y_TD = system.forward(x_TD, routing)
    torch.testing.assert_close(y_TD, ExpertParallel(**given).forward(x_TD, routing), rtol=0, atol=0)
    assert all(torch.equal(one, other) for one, other in zip(before, system._whole, strict=True))
