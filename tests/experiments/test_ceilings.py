"""Upper bounds that a launch measures or takes from its network model."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clusters.clocks import VirtualClock
from clusters.network import Network
from experiments.ceilings import LINK_BYTES, measure_ceilings, measure_link


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ceilings_are_of_this_machine_s_order(dtype):
    found = measure_ceilings(torch.device("cpu"), dtype)
    assert 1e8 < found["matmul_flops_per_s"] < 1e14 and 1e8 < found["copy_bytes_per_s"] < 1e13
    assert 0.05 < found["operation_us"] < 1000
    assert found["dtype"] == str(dtype).removeprefix("torch.") and found["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("ranks", "network", "num_bytes", "rate"),
    [
        (1, Network("slow", bandwidth_gbs=1), 1 << 24, float("inf")),
        (4, Network("none"), 1 << 24, float("inf")),
        (4, Network("nvlink", base_us=20, hop_us=3, bandwidth_gbs=200), 1 << 24, 200e9),
        (2, Network("slow_start", points=((0, 0), (1 << 20, 1000)), bandwidth_gbs=10), 1 << 24, 6.521e9),
        (2, Network("slow_start", points=((0, 0), (1 << 20, 1000)), bandwidth_gbs=10), 1 << 18, 1.0486e9),
    ],
)
def test_an_emulated_link_is_as_fast_as_its_model(ranks: int, network: Network, num_bytes: int, rate: float):
    """A slow start: a MiB in a millisecond and 15 more at 10 GB/s, 2.573 ms together."""
    session: Any = SimpleNamespace(world_size=ranks, clock=object.__new__(VirtualClock))
    assert measure_link(session, network, num_bytes) == pytest.approx(rate, rel=1e-3)


def test_a_measured_link_has_a_rate_however_noisy_the_machine(monkeypatch):
    """Exchanges between two ranks whose seconds have nothing to do with their size; the best counts."""
    monkeypatch.setattr("experiments.ceilings.dist.barrier", lambda group: None)
    monkeypatch.setattr("experiments.ceilings.all_to_all", lambda sent, group: sent)
    took = iter([0.5, 0.02, 0.01, 3.0, 0.02])
    clock = SimpleNamespace(mark=lambda: None, seconds=lambda start, end: next(took))
    session: Any = SimpleNamespace(world_size=2, clock=clock, group=None, device=torch.device("cpu"))
    assert measure_link(session, Network("none"), 1000) == LINK_BYTES["cpu"] / 0.01
