"""FSMoE and MoNTA: what they choose, by brute force and by hand; that results are right is the conformance kit's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from systems import mesh as meshes
from systems.base import LayerShape
from systems.fsmoe import DEGREES, FSMoE, time_s
from systems.mesh import Mesh, nodes_of
from systems.monta import PARTS, PLAIN, MoNTA
from systems.planners.base import Rates

SHAPE = LayerShape(num_experts=8, d_model=4, d_ff=8, max_tokens=16)
SECONDS = st.floats(0, 1e3)


class NoWeights:
    def shard(self, index: int, count: int, expert_ids: list[int]) -> tuple[torch.Tensor, ...]:
        return torch.empty(len(expert_ids), 4, 8 // count), torch.empty(len(expert_ids), 8 // count, 4)


@pytest.fixture
def built(monkeypatch):
    """kind, nodes, rates -> the system on rank 0 of four, which talks to nobody."""
    group: Any = SimpleNamespace(rank=lambda: 0, size=lambda: 4)
    monkeypatch.setattr(meshes, "mesh_of", lambda group, nodes: Mesh(nodes, 4 // nodes, group, group))

    def build(kind: Any, nodes: int, rates: Rates, **options: Any) -> Any:
        layer = {"shape": SHAPE, "weights": NoWeights(), "group": group, "engine": None}
        return kind(nodes=nodes, rates=rates, **options, **layer)

    return build


@given(
    st.tuples(SECONDS, SECONDS), st.tuples(SECONDS, SECONDS), st.tuples(SECONDS, SECONDS), st.tuples(SECONDS, SECONDS)
)
def test_modelled_time_is_that_of_a_pipeline_bounded_by_its_slowest_kind_of_step(cross, gather, total, experts):
    one = time_s(1, cross, gather, total, experts)
    assert one == pytest.approx(2 * sum(cross) + sum(gather) + sum(total) + sum(experts))
    for degree in DEGREES:
        assert time_s(degree, cross, gather, total, experts) >= degree * experts[0] + experts[1] - 1e-9


@pytest.mark.parametrize("bytes_per_s", [1.0, 1e2, 1e4, 1e9])
@pytest.mark.parametrize("flops_per_s", [1e2, 1e4, 1e12])
def test_degree_is_that_of_the_least_modelled_time(built, bytes_per_s, flops_per_s):
    rates = Rates(flops_per_s, bytes_per_s, 10 * bytes_per_s, 2, operation_s=1e-3)
    system = built(FSMoE, 2, rates)
    crossing, gathered, flops = system.volumes(12)
    assert (crossing, gathered) == (8 * 12 * 16 / 2, 8 * 12 * 16)
    assert flops == 8 * 12 * 2 * SHAPE.row_flops(4)
    steps = [(1e-3, volume / rate) for volume, rate in ((crossing, bytes_per_s), (gathered, 10 * bytes_per_s))]
    known = {degree: time_s(degree, *steps, steps[1], (1e-3, flops / flops_per_s)) for degree in DEGREES}
    assert known[system.best_degree(12)] == min(known.values())


@pytest.mark.parametrize("largest", [0, 1, 7, 12])
@pytest.mark.parametrize("degree", DEGREES)
def test_capacity_holds_the_largest_count_in_whole_parts(built, largest, degree):
    capacity = built(FSMoE, 2, Rates(1.0, 1.0), degree=degree).capacity(largest)
    assert capacity >= max(largest, 1) and capacity % degree == 0 and capacity < max(largest, 1) + degree


def test_strategy_is_the_quickest(built):
    rates = Rates(1e9, 1e3, 1e5, 2, operation_s=1e-6)
    system = built(MoNTA, 2, rates)
    system.capacity(12)
    times = {parts: system.time_s(parts, 12) for parts in (PLAIN, *PARTS)}
    assert times[system.parts] == min(times.values()) and system.parts != PLAIN
    start_bound = built(MoNTA, 2, rates._replace(operation_s=10.0))
    start_bound.capacity(12)
    assert start_bound.parts == PLAIN  # one exchange has one start


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_bytes_of_each_strategy(built, nodes):
    """Bytes to other nodes of the plain strategy are P times those of the others, by the closed forms of both."""
    tokens_GE = torch.full((4, 8), 3)
    once, plain = (built(MoNTA, nodes, Rates(1.0, 1.0), strategy=way) for way in (1, "plain"))
    accounts = [system.account(tokens_GE, 4) for system in (once, plain)]
    rows, per_node = 8 * 3 * 16, 4 // nodes
    agreed = 16 * 3 / 4
    assert accounts[0].bytes_sent == 2 * rows * ((nodes - 1) / nodes + per_node - 1) + agreed
    assert accounts[1].bytes_sent == 2 * rows * per_node * 3 / 4 + agreed


def test_nodes_are_the_networks_or_two_halves():
    assert nodes_of(Rates(1.0, 1.0, None, 8), 32) == 4
    assert nodes_of(Rates(1.0, 1.0, None, 8), 8) == nodes_of(Rates(1.0, 1.0), 4) == 2
    assert nodes_of(Rates(1.0, 1.0), 3) == 1


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (FSMoE, {"nodes": 3, "degree": 1}, "system.nodes is 3"),
        (FSMoE, {"nodes": None, "degree": 3}, "system.degree is 3"),
        (MoNTA, {"nodes": None, "strategy": "fast"}, "system.strategy is 'fast'"),
    ],
)
def test_bad_options_are_refused(kind, options, said):
    with pytest.raises(ValueError, match=said):
        kind.check(SHAPE, 4, **options)
