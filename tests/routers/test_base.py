import hashlib
import struct

import pytest
import torch

from routers.base import Routing

ROUTING = Routing(torch.tensor([[2], [0], [1]]), torch.tensor([[1.0], [0.5], [0.25]]))


def test_digest_by_hand():
    content = b"(3, 1)" + struct.pack("<3q", 2, 0, 1)
    assert ROUTING.digest() == hashlib.sha256(content).hexdigest()[:16]


def test_digest_does_not_see_how_the_same_numbers_are_kept():
    half = Routing(ROUTING.expert_TK.int(), ROUTING.weight_TK.bfloat16().requires_grad_())
    strided = Routing(torch.tensor([[2, 9], [0, 9], [1, 9]])[:, :1], ROUTING.weight_TK, torch.ones(3, 4))
    assert half.digest() == strided.digest() == ROUTING.digest()


@pytest.mark.parametrize(
    "other",
    [
        Routing(torch.tensor([[2], [1], [0]]), ROUTING.weight_TK),
        Routing(ROUTING.expert_TK.T, ROUTING.weight_TK.T),
        Routing(ROUTING.expert_TK[:2], ROUTING.weight_TK[:2]),
    ],
    ids=["expert", "shape", "fewer tokens"],
)
def test_another_routing_has_another_digest(other):
    assert other.digest() != ROUTING.digest()


def test_gate_weights_are_left_out_of_the_digest():
    """Those of a learned router differ between systems by rounding, though every token goes to the same expert."""
    assert Routing(ROUTING.expert_TK, 1.000001 * ROUTING.weight_TK).digest() == ROUTING.digest()


def test_tokens_per_expert_counts_those_without_tokens():
    assert ROUTING.tokens_per_expert(5).tolist() == [1, 1, 1, 0, 0]
