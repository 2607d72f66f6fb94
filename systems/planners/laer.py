"""LAER-MoE's planner (Fizzmy/LAER-MoE-AE, Hetu-Galvatron's branch laer-moe): replicas by load, spread over nodes."""

import numpy as np

from systems.planners.base import Costs, Planner, rows_per_rank
from systems.planners.chunks import Chunks
from systems.planners.eplb import replicate
from systems.planners.options import check_whole_number
from systems.planners.shadowing import forward_s


class LAER(Planner):
    """The cheaper of two layouts: with equally many replicas of all, and with each further one for the expert that has
    most tokens per replica. Heaviest replicas first go to the node with fewest copies of their expert, there to the
    lightest rank with a free slot. A rank's tokens are split evenly over the copies in its node, or over all if it has
    none.

    Any layout costs as much, because experts are put together from all ranks in every call (system.migration sharded).
    Ours: the cost is of a forward pass (FasterMoE's), where the source counts both passes of training; slots that equal
    numbers leave go to the busiest experts; a rank without the expert comes before one that has it; which of a rank's
    copies get the tokens that even parts leave, in turn from its own number on.
    Left out: planning beside the computation, on a processor of its own.
    """

    def __init__(self, extra_replicas: int = 32, node_size: int = 8) -> None:
        check_whole_number("extra_replicas", extra_replicas, 0)
        check_whole_number("node_size", node_size, 1)
        self.extra_replicas, self.node_size = extra_replicas, node_size

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """As many slots on all ranks, for which there may have to be more than extra_replicas."""
        num_experts, ranks = current_EG.shape
        load_E = loads_GE.sum(0)
        slots = -(-(num_experts + self.extra_replicas) // ranks) * ranks
        even_E = np.full(num_experts, slots // num_experts)
        even_E[np.argsort(-load_E, kind="stable")[: slots % num_experts]] += 1
        by_queue_E = np.bincount(replicate(load_E, slots - num_experts))
        layouts = [self._layout(load_E, count_E, ranks) for count_E in (even_E, by_queue_E)]
        return min(layouts, key=lambda replicas_EG: self._seconds(loads_GE, replicas_EG, costs))

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        expert_C, rank_C = np.nonzero(replicas_EG)
        node_G = np.arange(len(tokens_GE)) // self.node_size
        near_CG = node_G[rank_C][:, None] == node_G
        starts = np.searchsorted(expert_C, np.arange(len(replicas_EG)))
        anywhere_EG = ~np.logical_or.reduceat(near_CG, starts)
        return Chunks(expert_C, rank_C, evenly(tokens_GE, expert_C, near_CG | anywhere_EG[expert_C])).sent(
            len(replicas_EG)
        )

    def _layout(self, load_E: np.ndarray, count_E: np.ndarray, ranks: int) -> np.ndarray:
        each_E, nodes, slots = load_E / count_E, -(-ranks // self.node_size), int(count_E.sum()) // ranks
        members = [range(first, min(first + self.node_size, ranks)) for first in range(0, ranks, self.node_size)]
        room, free, load = [slots * len(of_node) for of_node in members], [slots] * ranks, [0.0] * ranks
        replicas_EG = np.zeros((len(load_E), ranks), np.int64)
        for expert in np.argsort(-each_E, kind="stable").tolist():
            held, copies = [0] * ranks, [0] * nodes
            for _ in range(int(count_E[expert])):
                node = min(range(nodes), key=lambda n: (not room[n], copies[n]))
                rank = min(members[node], key=lambda g: (not free[g], held[g], load[g]))
                copies[node], held[rank] = copies[node] + 1, held[rank] + 1
                room[node], free[rank] = room[node] - 1, free[rank] - 1
                load[rank] += float(each_E[expert])
            replicas_EG[expert] = held
        return replicas_EG

    def _seconds(self, loads_GE: np.ndarray, replicas_EG: np.ndarray, costs: Costs) -> float:
        sent_GEG = self.dispatch(np.rint(loads_GE).astype(np.int64), replicas_EG, np.zeros(len(replicas_EG), np.int64))
        rows_G = rows_per_rank(sent_GEG)
        return float(forward_s(rows_G, rows_G - np.einsum("geg->g", sent_GEG), costs))


def evenly(tokens_GE: np.ndarray, expert_C: np.ndarray, may_CG: np.ndarray) -> np.ndarray:
    """rows_CG: each rank's tokens for an expert in equal parts over the chunks that it may use (may_CG[c, g]); the rest
    one by one from the chunk with the rank's own number on. expert_C must not fall and has every expert.
    """
    starts = np.searchsorted(expert_C, np.arange(tokens_GE.shape[1]))
    chunks_CG = np.add.reduceat(may_CG, starts, dtype=np.int64)[expert_C]
    before_EG = (may_CG.cumsum(0) - may_CG)[starts]
    nth_CG = may_CG.cumsum(0) - may_CG - before_EG[expert_C]
    part_CG, rest_CG = np.divmod(tokens_GE.T[expert_C], chunks_CG)
    in_turn_CG = (nth_CG - np.arange(len(tokens_GE))) % chunks_CG
    return may_CG * (part_CG + (in_turn_CG < rest_CG))
