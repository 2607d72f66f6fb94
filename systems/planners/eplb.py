"""DeepSeek's EPLB (deepseek-ai/EPLB): replicate the busiest experts, then pack the replicas, in nodes or over all.

Letters beside those of base.py: X groups of experts, N nodes, e experts of a node, g ranks of a node.
"""

import numpy as np

from systems.planners.base import Costs, Planner, per_rank
from systems.planners.dispatch import evenly
from systems.planners.options import check_whole_number
from systems.planners.packing import count_replicas, pack


class EPLB(Planner):
    """Each extra replica goes to the expert with the most tokens per replica; heaviest replicas first fill the ranks.

    `groups` of neighbouring experts, as many as the model's gate has, are kept in one node each (hierarchical policy):
    they are packed onto nodes of `ranks_per_node` ranks (fewer are one node), and each node makes and packs its own
    replicas. As published, where nodes do not divide the groups all ranks are one node (global policy), which one group
    always means.
    Replicas of an expert may share a rank. 32 extra ones are DeepSeek-V3's choice in prefill.
    Ours: `dispatch`, which is no part of EPLB. Its packing counts on equal parts, so each rank spreads its tokens
    evenly, whatever is near. vLLM chooses a replica by a token's position in the batch modulo their number
    (second-hand), which is even on average only.
    """

    def __init__(self, extra_replicas: int = 32, groups: int = 1, ranks_per_node: int = 8) -> None:
        check_whole_number("extra_replicas", extra_replicas, 0)
        check_whole_number("groups", groups, 1)
        check_whole_number("ranks_per_node", ranks_per_node, 1)
        self.extra_replicas, self.replicates = extra_replicas, extra_replicas > 0
        self.groups, self.ranks_per_node = groups, ranks_per_node

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """Equal numbers of replicas on all ranks, for which there may have to be more than extra_replicas.

        Raises ValueError where ranks do not fill their nodes, where groups do not divide the experts, and where ranks
        do not and no replica may be made.
        """
        num_experts, ranks = current_EG.shape
        load_E = loads_GE.sum(0)
        if not self.replicates:
            per_rank(num_experts, ranks)
        extra = self.extra_replicas + -(num_experts + self.extra_replicas) % ranks
        replicas_EG = np.zeros((num_experts, ranks), np.int64)
        experts_Ne = self._experts_of_nodes(load_E, ranks)
        for expert_e, rank_g in zip(experts_Ne, np.arange(ranks).reshape(len(experts_Ne), -1), strict=True):
            replicas_EG[np.ix_(expert_e, rank_g)] = spread(load_E[expert_e], extra // len(experts_Ne), len(rank_g))
        return replicas_EG

    def _experts_of_nodes(self, load_E: np.ndarray, ranks: int) -> np.ndarray:
        """int64 [N, e]: whole groups, in the order in which they were packed; all in one node by the global policy."""
        num_experts, nodes = len(load_E), -(-ranks // self.ranks_per_node)
        if num_experts % self.groups:
            raise ValueError(f"planner.groups is {self.groups}; it must divide the {num_experts} experts")
        if self.groups == 1 or self.groups % nodes:
            return np.arange(num_experts)[None]
        if nodes > 1 and ranks % self.ranks_per_node:
            raise ValueError(
                f"planner.ranks_per_node is {self.ranks_per_node}; {ranks} ranks do not fill nodes of so many"
            )
        expert_Xe = np.arange(num_experts).reshape(self.groups, -1)
        load_X = load_E[expert_Xe].sum(1)
        packed_X = np.lexsort((-load_X, fill(load_X, nodes)))
        return expert_Xe[packed_X].reshape(nodes, -1)

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        return evenly(tokens_GE, replicas_EG, owner_E)


def spread(load_e: np.ndarray, extra: int, ranks: int) -> np.ndarray:
    """replicas_EG of one node: each expert, `extra` replicas more, and equally many on each of its ranks."""
    expert_R = replicate(load_e, extra)
    weights_R = (load_e / np.bincount(expert_R))[expert_R]
    return count_replicas(expert_R, fill(weights_R, ranks), len(load_e), ranks)


def fill(weights_R: np.ndarray, bins: int) -> np.ndarray:
    """int64 [R]: `pack`, but one item for each leaves nothing to balance: upstream keeps them in order."""
    return np.arange(bins) if len(weights_R) == bins else pack(weights_R, bins)


def replicate(load_E: np.ndarray, extra: int) -> np.ndarray:
    """int64 [R]: the expert of each replica: one of each, then the extra ones in the order they were given out."""
    experts, count_E = list(range(len(load_E))), np.ones(len(load_E), np.int64)
    per_replica_E = load_E.astype(np.float64)
    for _ in range(extra):
        busiest = int(per_replica_E.argmax())
        experts.append(busiest)
        count_E[busiest] += 1
        per_replica_E[busiest] = load_E[busiest] / count_E[busiest]
    return np.array(experts)
