"""What holds of every planner, whatever the loads."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from systems.planners.base import Costs, Planner, as_replicas, owner_of
from systems.planners.eplb import EPLB
from systems.planners.fastermoe import FasterMoE
from systems.planners.lazarus import Lazarus
from systems.planners.placement import Packed
from systems.planners.prophet import Prophet
from systems.planners.smartmoe import SmartMoE

# A planner for a number of ranks and of experts a rank, and the replicas that a rank then has (None: as the loads ask).
PLANNERS: dict[str, tuple[Callable[[int, int], Planner], Callable[[int, int], int | None]]] = {
    "fastermoe": (lambda ranks, local: FasterMoE(), lambda ranks, local: None),
    "prophet": (lambda ranks, local: Prophet(), lambda ranks, local: None),
    "prophet excluding": (lambda ranks, local: Prophet(ranks // 2, 0.0), lambda ranks, local: None),
    "smartmoe": (lambda ranks, local: SmartMoE(), lambda ranks, local: local),
    "packed": (lambda ranks, local: Packed(), lambda ranks, local: local),
    "eplb": (lambda ranks, local: EPLB(2 * ranks), lambda ranks, local: local + 2),
    "eplb without replicas": (lambda ranks, local: EPLB(0), lambda ranks, local: local),
    "lazarus": (lambda ranks, local: Lazarus(1 + 1 / local), lambda ranks, local: local + 1),
    "lazarus, two of each": (lambda ranks, local: Lazarus(2 + 1 / local, 2), lambda ranks, local: 2 * local + 1),
    "lazarus balanced": (lambda ranks, local: Lazarus(1 + 1 / local, balanced=True), lambda ranks, local: local + 1),
}
few, many = st.integers(0, 5), st.integers(0, 10**6)


@pytest.mark.parametrize("name", PLANNERS)
@settings(deadline=None, max_examples=100)
@given(
    ranks=st.integers(1, 6),
    local=st.integers(1, 6),
    costs=st.builds(Costs, *[st.sampled_from([0.0, 1e-7, 1e-4, 1.0])] * 3),
    estimated=st.booleans(),
    data=st.data(),
)
def test_plans_are_legal(name, ranks, local, costs, estimated, data):
    num_experts = ranks * local
    shape = (ranks, num_experts)
    tokens_GE, loads_GE = (data.draw(arrays(np.int64, shape, elements=few | many)) for _ in range(2))
    loads_GE = loads_GE / 3 if estimated else loads_GE
    owner_E = np.array(data.draw(st.permutations(range(num_experts)))) // local
    current_EG = as_replicas(owner_E, ranks)
    inputs = tokens_GE, loads_GE, owner_E, current_EG
    before = [array.copy() for array in inputs]
    build, budget = PLANNERS[name]

    replicas_EG = build(ranks, local).place(loads_GE, current_EG, costs)
    lives_E = owner_E if name.startswith(("fastermoe", "prophet")) else owner_of(replicas_EG)
    sent_GEG = build(ranks, local).dispatch(tokens_GE, replicas_EG, lives_E)

    assert replicas_EG.shape == (num_experts, ranks) and replicas_EG.dtype == sent_GEG.dtype == np.int64
    assert replicas_EG.min() >= 0 and (replicas_EG.sum(1) >= 1).all()
    if (slots := budget(ranks, local)) is None:
        assert (replicas_EG >= current_EG).all() and replicas_EG.max() == 1
    else:
        assert replicas_EG.sum(0).tolist() == [slots] * ranks
    assert sent_GEG.min() >= 0 and (sent_GEG.sum(2) == tokens_GE).all()
    assert not sent_GEG[:, replicas_EG == 0].any()
    again_EG = build(ranks, local).place(loads_GE, current_EG, costs)
    assert (again_EG == replicas_EG).all()
    assert (build(ranks, local).dispatch(tokens_GE, again_EG, lives_E) == sent_GEG).all()
    assert all((copy == array).all() for copy, array in zip(before, inputs, strict=True))
