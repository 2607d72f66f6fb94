"""MoNDE: how many experts are fetched, and that both sides of a described device work at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from systems.base import LayerShape
from systems.engines.declared import DECLARED
from systems.monde import MoNDE, best_split
from systems.near_memory import ExpertSizes, Unit
from systems.planners.base import Rates
from tests.clusters.simulated.stub import simulate
from tests.systems import programs
from tests.systems.naive import draw, layer

SHAPE = LayerShape(num_experts=8, d_model=16, d_ff=32, max_tokens=64)
RATE = st.floats(1e3, 1e9)


@given(st.lists(st.integers(1, 500), max_size=8), RATE, RATE, RATE, RATE)
def test_split_is_the_best_of_all(rows, near_flops, near_bytes, link_bytes, flops):
    rows_e, unit = np.sort(np.array(rows, int))[::-1], Unit(near_flops, near_bytes, link_bytes)
    sizes = ExpertSizes.of(SHAPE, 4)
    expert_bytes, row_bytes, row_flops = sizes
    assert (expert_bytes, row_bytes, row_flops) == (4 * 2 * 16 * 32, 4 * 16, 2 * 2 * 16 * 32)
    times = []
    for hot in range(len(rows) + 1):
        device_s = sum(expert_bytes / link_bytes + int(n) * row_flops / flops for n in rows_e[:hot])
        near_s = sum(
            2 * int(n) * row_bytes / link_bytes + max(expert_bytes / near_bytes, int(n) * row_flops / near_flops)
            for n in rows_e[hot:]
        )
        times.append(max(device_s, near_s))
    assert times[best_split(rows_e, sizes, unit, flops)] == pytest.approx(min(times))


@pytest.mark.parametrize("hot", [0, 3, 8, None])
def test_hot_experts_are_those_with_most_rows_and_idle_ones_are_left_alone(one_rank, hot):
    unit = {"near_flops_per_s": 1e9, "near_bytes_per_s": 1e9, "link_bytes_per_s": 1e9}
    system = MoNDE(**unit, hot=hot, rates=Rates(1e9, 1.0), **layer(8, 40, 1, one_rank))
    x_TD, routing = draw(40, 8, 1, 0)
    system.forward(x_TD, routing)
    rows_E, split = routing.tokens_per_expert(8), system.plan.noted
    assert sorted(split.hot + split.cold) == rows_E.nonzero().flatten().tolist()
    if split.hot and split.cold:
        assert min(rows_E[split.hot]) >= max(rows_E[split.cold])
    if hot is not None:
        assert len(split.hot) == min(hot, int(rows_E.count_nonzero()))


@pytest.mark.parametrize(
    ("option", "value"), [("near_flops_per_s", 0), ("link_bytes_per_s", -1), ("near_bytes_per_s", "fast")]
)
def test_a_unit_without_speed_is_refused(option, value):
    unit = {"near_flops_per_s": 1.0, "near_bytes_per_s": 1.0, "link_bytes_per_s": 1.0, option: value}
    with pytest.raises(ValueError, match=f"system.{option} is {value!r}"):
        MoNDE.check(SHAPE, 1, **unit, hot=None)


@pytest.mark.parametrize(("work_s", "expected_s"), [(1.0, 5.0), (9.0, 9.0)])
def test_the_unit_works_beside_the_device(work_s, expected_s):
    """Two rows of 1 B there and back at 1 B/s, and a byte of weights for one second."""
    ran = simulate(programs.near_unit, work_s, ranks=1, declared=DECLARED)
    assert ran.results == [pytest.approx(expected_s)]
