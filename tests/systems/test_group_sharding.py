"""How tokens travel in group sharding, counted on simulated ranks whose routing is known; outputs are conformance's."""

import numpy as np
import pytest
import torch

from clusters.network import Network
from clusters.simulated import Simulated
from routers.base import Routing
from systems.base import LayerShape
from systems.engines.declared import DECLARED
from systems.engines.loop import LoopEngine
from systems.group_sharding import GroupSharding
from systems.planners.base import Profile, Rates
from tests.clusters.simulated.stub import Device, call
from workloads.model import ModelShape
from workloads.weights import ShapedLayer

EXPERTS, TOKENS, TOP_K, D_MODEL, D_FF = 16, 20, 3, 8, 16


def routed(rank: int) -> np.ndarray:
    generator = np.random.default_rng(rank)
    return np.stack([generator.permutation(EXPERTS)[:TOP_K] for _ in range(TOKENS)])


def travelled(ranks: int, per_node: int, sizes: list[int]) -> list[dict]:
    """What each rank tells of one call."""
    cluster = Simulated(Device(), Network("free"), ranks, "fp32", DECLARED)
    shape = LayerShape(EXPERTS, D_MODEL, D_FF, TOKENS, TOP_K)
    model = ModelShape(EXPERTS, D_MODEL, D_FF, 4, 4, 2, 2, 32, top_k=TOP_K)

    def program(session, timeline) -> dict:
        with torch.no_grad():
            expert_LGM = np.stack([[routed(rank).flatten() for rank in range(ranks)]])
            system = GroupSharding(
                sizes=sizes,
                travel="once",
                rates=Rates(1e11, 2e11, ranks_per_node=per_node),
                profile=Profile(lambda: expert_LGM, 0),
                shape=shape,
                group=session.group,
                weights=ShapedLayer(model, torch.float32, session.device),
                engine=LoopEngine(),
            )
            expert_TK = torch.from_numpy(routed(session.rank)).to(session.device)
            routing = Routing(expert_TK, torch.ones(TOKENS, TOP_K, device=session.device))
            system.forward(torch.empty(TOKENS, D_MODEL, device=session.device), routing)
            return {"holds": system._holds_EG.cpu().tolist(), "there": system.plan.there, "back": system.plan.back}

    return cluster.run(program)


@pytest.mark.parametrize("sizes", [[1], [2], [1, 2]])
@pytest.mark.parametrize("per_node", [1, 2, 4])
def test_a_token_goes_once_to_a_node_and_once_to_a_rank(per_node, sizes):
    if min(sizes) > per_node:
        with pytest.raises(ValueError, match=r"system\.sizes is \[2\]; a node has 1 ranks"):
            call(travelled, 4, per_node, sizes, ranks=4)
        return
    told = call(travelled, 4, per_node, sizes, ranks=4)
    holds_EG = np.array(told[0]["holds"])
    rank_G, hops = np.arange(4), {"there": np.zeros(4, int), "back": np.zeros(4, int)}
    for source in rank_G:
        for experts in routed(source):
            wanted = np.flatnonzero(holds_EG[experts].any(0))
            for node in set(wanted // per_node):
                entry = node * per_node + source % per_node  # where the token comes into the node
                count(hops, source, entry)
                for rank in wanted[wanted // per_node == node]:
                    count(hops, entry, rank)
    assert [rank["there"] for rank in told] == hops["there"].tolist()
    assert [rank["back"] for rank in told] == hops["back"].tolist()


def count(hops: dict[str, np.ndarray], source: int, target: int) -> None:
    """A row and its answer, where they change ranks."""
    hops["there"][source] += source != target
    hops["back"][target] += source != target
