"""Lazarus (Wu et al., arXiv v2): replicas by popularity, placed to survive failures, tokens sent by spare capacity."""

import numpy as np

from systems.planners.base import Costs, Planner
from systems.planners.options import check_whole_number
from systems.planners.packing import count_replicas, pack


class Lazarus(Planner):
    """Every rank has `slots_per_rank` replicas, every expert at least `min_replicas` (f, 2 in the paper), popular ones
    more; several of one expert may share a rank.

    The paper's placement, maximum rank overlap (MRO), makes recovery from failures likely. It does not balance: while
    slots are few, popular experts share few ranks. `balanced` places the same numbers of replicas by longest processing
    time instead, which is not in the paper.
    Ours: even shares where there is no load; which vacant slots remaining replicas fill (the paper says uniformly);
    fewer ranks for a last group that does not fit; whole tokens, where the paper sends real numbers.
    Left out: failures and all that recovers from them.
    """

    def __init__(self, slots_per_rank: int = 48, min_replicas: int = 1, balanced: bool = False) -> None:
        check_whole_number("slots_per_rank", slots_per_rank, 1)
        check_whole_number("min_replicas", min_replicas, 1)
        if type(balanced) is not bool:
            raise ValueError(f"planner.balanced is {balanced!r}; it must be true or false")
        self.slots_per_rank, self.min_replicas, self.balanced = slots_per_rank, min_replicas, balanced

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """slots_per_rank replicas on every rank; ValueError where they are too few for min_replicas of each expert."""
        num_experts, ranks = current_EG.shape
        least = -(-num_experts * self.min_replicas // ranks)
        if self.slots_per_rank < least:
            raise ValueError(
                f"planner.slots_per_rank is {self.slots_per_rank}; with {num_experts} experts on {ranks} ranks and "
                f"planner.min_replicas {self.min_replicas} it must be at least {least}"
            )
        load_E = loads_GE.sum(0)
        count_E = allocate(load_E, ranks * self.slots_per_rank, self.min_replicas)
        if self.balanced:
            expert_R = np.repeat(np.arange(num_experts), count_E)
            replicas_EG = count_replicas(expert_R, pack((load_E / count_E)[expert_R], ranks), num_experts, ranks)
        else:
            replicas_EG = np.empty_like(current_EG)
            rising_E = np.argsort(load_E, kind="stable")
            replicas_EG[rising_E] = maximum_rank_overlap(count_E[rising_E], ranks, self.slots_per_rank)
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
        count_E[expert] = max(int(load * slots // unserved), min_replicas)
        slots -= int(count_E[expert])
    # Loads with fractions are rounded: then some slots are left, and an expert may have more than one that is busier.
    count_E[rising_E[-1]] += slots
    count_E[rising_E] = np.sort(count_E)
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
    """
    here_G, count_E = np.arange(len(tokens_GE)), replicas_EG.sum(1)
    # In units of 1/count_E tokens, in which capacities are whole numbers.
    capacity_GE, wanted_GE = tokens_GE.sum(0) * replicas_EG.T, tokens_GE * count_E
    local_GE = np.minimum(capacity_GE, wanted_GE)
    spare_GE = capacity_GE - local_GE
    share_GE = spare_GE / np.maximum(spare_GE.sum(0), 1)
    quota_GEG = ((wanted_GE - local_GE) / count_E)[:, :, None] * share_GE.T
    quota_GEG[here_G, :, here_G] += local_GE / count_E  # 0 until now: who has spare capacity sends nothing
    return largest_remainder(quota_GEG, tokens_GE)


def largest_remainder(quota_XG: np.ndarray, total_X: np.ndarray) -> np.ndarray:
    """int64 [..., G] with sums `total_X`, each less than 1 from its quota; of equal remainders the first wins."""
    whole_XG = np.floor(quota_XG).astype(np.int64)
    order_XG = np.argsort(whole_XG - quota_XG, axis=-1, kind="stable")
    wins_XG = np.arange(quota_XG.shape[-1]) < (total_X - whole_XG.sum(-1))[..., None]
    np.put_along_axis(whole_XG, order_XG, np.take_along_axis(whole_XG, order_XG, -1) + wins_XG, -1)
    return whole_XG
