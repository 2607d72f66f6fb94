"""Lazarus (Wu et al., arXiv v2): replicas by popularity, placed to survive failures, tokens sent by spare capacity."""

import math

import numpy as np

from systems.planners.base import Costs, Planner
from systems.planners.dispatch import deal, to_hosts
from systems.planners.options import check_positive, check_whole_number
from systems.planners.packing import count_replicas, pack

ROUNDING = 1e-9  # what a share that should be a whole number may lack in floats


class Lazarus(Planner):
    """Every rank has `slot_ratio` x E/G slots for replicas (the next whole number), every expert at least
    `min_replicas` (f, 2 in the paper), popular ones more; several of one expert may share a rank.

    The paper's placement, maximum rank overlap (MRO), makes recovery from failures likely. It does not balance: while
    slots are few, popular experts share few ranks. `balanced` places the same numbers of replicas by longest processing
    time instead, which is not in the paper.
    Ours: slots in parts of the E/G experts that a rank holds without replicas, so that memory stays comparable (the
    paper has 6 a rank, for 8 to 16 experts); even shares where there is no load; which vacant slots remaining replicas
    fill (the paper says uniformly); fewer ranks for a last group that does not fit; whole tokens, where the paper sends
    real numbers.
    Left out: failures and all that recovers from them.
    """

    def __init__(self, slot_ratio: float = 1.5, min_replicas: int = 1, balanced: bool = False) -> None:
        check_positive("slot_ratio", slot_ratio)
        check_whole_number("min_replicas", min_replicas, 1)
        if slot_ratio < min_replicas:
            raise ValueError(
                f"planner.slot_ratio is {slot_ratio!r}; with planner.min_replicas {min_replicas} it must be at least "
                f"{min_replicas}"
            )
        if type(balanced) is not bool:
            raise ValueError(f"planner.balanced is {balanced!r}; it must be true or false")
        self.slot_ratio, self.min_replicas, self.balanced = slot_ratio, min_replicas, balanced

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """As many replicas on every rank as it has slots."""
        num_experts, ranks = current_EG.shape
        slots = math.ceil(self.slot_ratio * num_experts / ranks - ROUNDING)
        load_E = loads_GE.sum(0)
        count_E = allocate(load_E, ranks * slots, self.min_replicas)
        if self.balanced:
            expert_R = np.repeat(np.arange(num_experts), count_E)
            replicas_EG = count_replicas(expert_R, pack((load_E / count_E)[expert_R], ranks), num_experts, ranks)
        else:
            replicas_EG = np.empty_like(current_EG)
            rising_E = np.argsort(load_E, kind="stable")
            replicas_EG[rising_E] = maximum_rank_overlap(count_E[rising_E], ranks, slots)
        return renumber(replicas_EG, current_EG)

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        return locally_first(tokens_GE, replicas_EG)


def allocate(load_E: np.ndarray, slots: int, min_replicas: int) -> np.ndarray:
    """int64 [E] with sum `slots`: from the least popular on, each expert's share of the slots that are left."""
    count_E = np.empty(len(load_E), np.int64)
    rising_E = np.argsort(load_E, kind="stable")
    loads_E = load_E[rising_E] if load_E.any() else np.ones_like(load_E)
    unserved_E = loads_E[::-1].cumsum()[::-1]
    for expert, load, unserved in zip(rising_E.tolist(), loads_E.tolist(), unserved_E.tolist(), strict=True):
        count_E[expert] = max(math.floor(load / unserved * slots + ROUNDING), min_replicas)
        slots -= int(count_E[expert])
    return count_E


def maximum_rank_overlap(count_E: np.ndarray, world_size: int, slots_per_rank: int) -> np.ndarray:
    """replicas_EG of experts in rising order of popularity, given how many replicas each has.

    Each group of `slots_per_rank` experts shares as many ranks as its least popular member has replicas. Each replica
    that remains goes to the rank with the most vacant slots.
    """
    replicas_EG = np.zeros((len(count_E), world_size), np.int64)
    first = 0
    for group in range(0, len(count_E), slots_per_rank):
        last = min(first + count_E[group], world_size)
        replicas_EG[group : group + slots_per_rank, first:last] = 1
        first = last
    vacant_G = slots_per_rank - replicas_EG.sum(0)
    expert_R = np.repeat(np.arange(len(count_E)), count_E - replicas_EG.sum(1))
    _, rank_R = np.nonzero(np.arange(slots_per_rank)[::-1, None] < vacant_G)
    return replicas_EG + count_replicas(expert_R, rank_R, *replicas_EG.shape)


def renumber(replicas_EG: np.ndarray, current_EG: np.ndarray) -> np.ndarray:
    """The plan with its ranks renumbered so that few experts move: greedily, the pair with most in common first.

    The paper so maps old nodes to its new plan.
    """
    common_GG = (current_EG > 0).astype(np.int64).T @ (replicas_EG > 0)
    column_G = np.empty(len(common_GG), np.int64)
    for _ in column_G:
        rank, column = np.unravel_index(common_GG.argmax(), common_GG.shape)
        column_G[rank] = column
        common_GG[rank], common_GG[:, column] = -1, -1
    return replicas_EG[:, column_G]


def locally_first(tokens_GE: np.ndarray, replicas_EG: np.ndarray) -> np.ndarray:
    """sent_GEG by the paper's Algorithm 1: every replica has capacity for as many tokens, which the tokens of its own
    rank use first; others share what is left in proportion.

    In whole numbers: capacities are dealt out, and so is what proportions leave over, to the capacity that they leave.
    So every replica gets its capacity, which differs by at most one from another's of the same expert.
    """
    expert_H, rank_H = np.nonzero(replicas_EG)
    capacity_H = deal(tokens_GE.sum(0, keepdims=True), expert_H, replicas_EG[expert_H, rank_H])[0]
    local_H = np.minimum(capacity_H, tokens_GE[rank_H, expert_H])
    spare_H, left_GE = capacity_H - local_H, tokens_GE.copy()
    left_GE[rank_H, expert_H] -= local_H
    # Rounded down in floats, which are exact enough below ten million tokens: no share is 1e-7 below a whole number.
    share_H = spare_H / np.maximum(left_GE.sum(0), 1)[expert_H]
    sent_GH = (left_GE[:, expert_H] * share_H).astype(np.int64)
    left_GE -= np.add.reduceat(sent_GH, np.unique(expert_H, return_index=True)[1], axis=1)
    sent_GH += deal(left_GE, expert_H, spare_H - sent_GH.sum(0))
    sent_GH[rank_H, np.arange(len(rank_H))] += local_H
    return to_hosts(sent_GH, expert_H, rank_H, len(replicas_EG))
