"""ScMoE: the moment at which experts compute, and that only the block before's attention is asked."""

import pytest
import torch

from systems.base import LayerShape
from systems.expert_parallel import ExpertParallel
from systems.planners.base import Rates
from systems.scmoe import AFTER_BLOCK, AT_END, AT_ONCE, ScMoE, best_slot
from tests.systems.naive import draw, layer

SHAPE = LayerShape(num_experts=8, d_model=64, d_ff=256, max_tokens=100)
NETWORK = 100 * SHAPE.row_flops(256)
ATTENTION = 100 * 8 * 64**2
ROWS = 100 * 64 * 4


@pytest.mark.parametrize(
    ("exchange_in_flops", "slot"),
    [
        (NETWORK, AFTER_BLOCK),  # off by what the way back has beyond attention; at either end by one exchange in whole
        ((NETWORK + ATTENTION) / 2, AFTER_BLOCK),
        (0, AT_ONCE),  # as good as at the end, and first
    ],
)
def test_slot_balances_what_hides_either_exchange(exchange_in_flops, slot):
    rates = Rates(1.0, ROWS / exchange_in_flops if exchange_in_flops else float("inf"))
    assert best_slot(SHAPE, rates, 4) == slot


@pytest.mark.parametrize("bytes_per_s", [1e-3, 1.0, 10.0, 1e9])
def test_slot_is_the_best_of_all(bytes_per_s):
    exchange = ROWS / bytes_per_s
    off = {
        AT_ONCE: abs(0 - exchange) + abs(NETWORK + ATTENTION - exchange),
        AFTER_BLOCK: abs(NETWORK - exchange) + abs(ATTENTION - exchange),
        AT_END: abs(NETWORK + ATTENTION - exchange) + abs(0 - exchange),
    }
    assert off[best_slot(SHAPE, Rates(1.0, bytes_per_s), 4)] == pytest.approx(min(off.values()))


@pytest.mark.parametrize("slot", [AT_ONCE, AFTER_BLOCK, AT_END])
def test_the_result_is_that_of_what_was_begun_whatever_comes_between(one_rank, slot):
    system = ScMoE(slot=slot, rates=Rates(1.0, 1.0), **layer(8, 40, 1, one_rank))
    (x_TD, routing), (other_TD, other) = draw(40, 8, 1, 0), draw(40, 8, 1, 1)
    at_once_TD = ExpertParallel(**layer(8, 40, 1, one_rank)).forward(x_TD, routing)
    system.begin(x_TD, routing)
    system.go_on()
    torch.testing.assert_close(system.forward(other_TD, other), at_once_TD, rtol=0, atol=0)


def test_a_block_that_tells_nothing_is_an_error(one_rank):
    """Expert parallelism under this name would be another measurement."""
    system = ScMoE(rates=Rates(1.0, 1.0), **layer(8, 40, 1, one_rank))
    with pytest.raises(RuntimeError, match="was given nothing by the block before"):
        system.forward(*draw(40, 8, 1, 0))
