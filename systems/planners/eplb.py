"""DeepSeek's EPLB (deepseek-ai/EPLB, global policy): replicate the busiest experts, then pack the replicas."""

import numpy as np

from systems.planners.base import Costs, Planner
from systems.planners.dispatch import evenly
from systems.planners.options import check_whole_number
from systems.planners.packing import count_replicas, pack


class EPLB(Planner):
    """Each extra replica goes to the expert with the most tokens per replica; heaviest replicas first fill the ranks.

    Replicas of an expert may share a rank. 32 extra ones are DeepSeek-V3's choice in prefill.
    Ours: `dispatch`, which is no part of EPLB. Its packing counts on equal parts, so each rank spreads its tokens
    evenly, whatever is near. vLLM chooses a replica by a token's position in the batch modulo their number
    (second-hand), which is even on average only.
    Left out: the hierarchical policy; with one node and one group of experts it is this one.
    """

    def __init__(self, extra_replicas: int = 32) -> None:
        check_whole_number("extra_replicas", extra_replicas, 0)
        self.extra_replicas, self.replicates = extra_replicas, extra_replicas > 0

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """Equal numbers of replicas on all ranks, for which there may have to be more than extra_replicas.

        Raises ValueError where there are to be none and ranks cannot have equally many experts.
        """
        num_experts, ranks = current_EG.shape
        missing = -(num_experts + self.extra_replicas) % ranks
        if missing and not self.replicates:
            raise ValueError(f"planner.extra_replicas is 0; {num_experts} experts on {ranks} ranks need {missing} more")
        extra = self.extra_replicas + missing
        load_E = loads_GE.sum(0)
        expert_R = replicate(load_E, extra)
        weights_R = (load_E / np.bincount(expert_R))[expert_R]
        # One slot a rank leaves nothing to balance: upstream keeps the replicas in order.
        rank_R = np.arange(ranks) if len(expert_R) == ranks else pack(weights_R, ranks)
        return count_replicas(expert_R, rank_R, num_experts, ranks)

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        return evenly(tokens_GE, replicas_EG, owner_E)


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
