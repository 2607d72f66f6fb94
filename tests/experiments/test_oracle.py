"""What the check of a system's output holds."""

from types import SimpleNamespace
from typing import Any

import torch

from experiments import oracle
from workloads.model import ModelShape
from workloads.weights import SeededLayer, SharedLayer


def test_weights_of_the_check_are_made_before_ranks_take_turns():
    sizes = {"num_experts": 3, "d_model": 4, "d_ff": 8}
    model = ModelShape(**sizes, d_kv=2, num_heads=2, num_blocks=2, vocab_size=50, sparse_step=2, checkpoint=None)
    layer = SharedLayer(SeededLayer(model, 1, 0, torch.float32, torch.device("cpu")))
    workload, program = SimpleNamespace(model=model), SimpleNamespace(oracle_weights={1: layer})
    bench: Any = SimpleNamespace(workload=workload, program=program)
    oracle._draw_weights(bench)
    assert layer._given.keys() == {(0,), (1,), (2,)}
