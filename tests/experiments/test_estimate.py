import re

import pytest

from experiments.cells import Cell
from experiments.estimate import announce, forward_flops, num_passes
from experiments.plan import make_plan
from experiments.store import Store
from tests.experiments.tiny import configuration, point


def test_passes_of_a_cell():
    config = configuration("tier.warmup=2", "tier.rounds=5")
    assert num_passes(Cell(config, 0)) == 1 + 2 + 2 * 5


def test_flops_by_hand():
    # d 16, inner 2*8, 12 tokens a sequence, one dense and one MoE block of width 32, 2 ranks x 2 x 12 tokens
    attention, ffn = 8 * 16 * 16 + 4 * 12 * 16, 4 * 16 * 32
    assert forward_flops(Cell(configuration("system=moeshard"), 0)) == (2 * attention + 2 * ffn) * 48
    padded = forward_flops(Cell(configuration("system=deepspeed"), 0))  # capacity factor min(4, 50)
    assert padded == (2 * attention + (1 + 4) * ffn) * 48


@pytest.mark.parametrize(("systems", "cells"), [(("moeshard",), 1), (("moeshard", "ep"), 2)])
def test_announcement(tmp_path, systems, cells):
    plan = make_plan([point(*systems, out=tmp_path)])
    text = announce(plan, Store(tmp_path))
    assert re.match(rf"plan: 1 launch, {cells} cells, {cells * 6} forward passes; about \d+ s \(rough", text), text


def test_lossless_capacity_is_estimated_from_the_intended_load():
    # 24 tokens a rank and 4 experts, of which one is hot: (1/4 + 0.6) / 1.6 of them is 12.75, so C = 13
    attention, ffn = 8 * 16 * 16 + 4 * 12 * 16, 4 * 16 * 32
    flops = forward_flops(Cell(configuration("system=deepspeed_lossless"), 0))
    assert flops == pytest.approx((2 * attention + (1 + 4 * 12.5 / 24) * ffn) * 48)
    learned = forward_flops(Cell(configuration("system=deepspeed_lossless", "router=learned"), 0))
    assert learned == (2 * attention + 2 * ffn) * 48
