"""UltraEP (arXiv 2606.04101): the smallest threshold to which overloaded ranks can export, each batch and layer."""

import heapq
import math

import numpy as np

from systems.planners.base import as_replicas
from systems.planners.chunks import BatchPlanner, Chunks, locally_first
from systems.planners.options import check_whole_number

Exports = list[tuple[int, int, int]]  # (expert, rank that it is copied to, rows)


class UltraEP(BatchPlanner):
    """Ranks above a threshold export what exceeds it, the busiest rank first and of its experts the heaviest, to the
    rank with the most room below the threshold that has one of its `slots` free; an owner keeps a token of each expert.

    Three thresholds near the mean are tried, with copies of at least what a rank must export divided by the ranks that
    can take it. If none works, a search that divides by five finds the smallest that does with copies of at least
    `min_chunk` rows (q_min); the largest load always works. An expert's tokens first fill the quota of their own rank.
    Source: the released kernels (94cab099). Its steps run on the device in about 0.07 ms; here they are the host's.
    Left out: copies inside one fast domain only, and relays where many ranks want the same expert.
    """

    def __init__(self, slots: int = 2, min_chunk: int = 1024) -> None:
        check_whole_number("slots", slots, 0)
        check_whole_number("min_chunk", min_chunk, 1)
        self.slots, self.min_chunk = slots, min_chunk

    def divide(self, tokens_GE: np.ndarray, owner_E: np.ndarray) -> Chunks:
        load_E, ranks = tokens_GE.sum(0), len(tokens_GE)
        home_EG = as_replicas(owner_E, ranks)
        quota_EG = home_EG * load_E[:, None]
        for expert, rank, rows in self.exports(load_E, owner_E, ranks):
            quota_EG[expert, rank] += rows
            quota_EG[expert, owner_E[expert]] -= rows
        expert_C, rank_C = np.nonzero(home_EG + quota_EG)
        return Chunks(expert_C, rank_C, locally_first(tokens_GE, expert_C, rank_C, quota_EG[expert_C, rank_C]))

    def exports(self, load_E: np.ndarray, owner_E: np.ndarray, ranks: int) -> Exports:
        """Those to the smallest threshold that was found."""
        load, owned = [0] * ranks, [[] for _ in range(ranks)]
        for expert in np.argsort(-load_E, kind="stable").tolist():
            tokens, owner = int(load_E[expert]), int(owner_E[expert])
            load[owner] += tokens
            owned[owner].append((expert, tokens))
        mean, most = -(-sum(load) // ranks), max(load)
        near = math.ceil(mean * 1.01)
        for threshold in (near, near + -(-most // 100), near + 2 * -(-most // 100)):
            if (found := export(load, owned, threshold, self.slots, None)) is not None:
                return found
        below, found = mean - 1, []
        while most - below > 1:
            for threshold in sorted({below + (most - below) * fifth // 5 for fifth in range(1, 5)} - {below}):
                if (better := export(load, owned, threshold, self.slots, self.min_chunk)) is not None:
                    most, found = threshold, better
                    break
                below = threshold
        return found


def export(
    load: list[int], owned: list[list[tuple[int, int]]], threshold: int, slots: int, min_chunk: int | None
) -> Exports | None:
    """What brings every rank down to the threshold; None if this way does not. owned: a rank's experts, heaviest first.

    min_chunk: fewest rows of a copy; None: what the rank has to export divided by the ranks that can take some.
    """
    room = [(rows - threshold, rank) for rank, rows in enumerate(load) if rows < threshold and slots]
    if sum(max(rows - threshold, 0) for rows in load) > -sum(below for below, _ in room):
        return None
    heapq.heapify(room)  # the rank with the most room first
    free, exports = [slots] * len(load), []
    for rank in sorted(range(len(load)), key=lambda rank: -load[rank]):
        excess = load[rank] - threshold
        for expert, tokens in owned[rank] if excess > 0 else ():
            movable = tokens - 1
            while excess and movable > 0 and room:
                below, target = room[0]
                rows = min(excess, movable, -below)
                if rows < (min_chunk or -(-excess // len(room))):
                    break
                free[target] -= 1
                # A target with room left is not asked for the same expert again: excess or tokens are at their end.
                if below + rows and free[target]:
                    heapq.heapreplace(room, (below + rows, target))
                else:
                    heapq.heappop(room)
                exports.append((expert, target, rows))
                excess, movable = excess - rows, movable - rows
        if excess > 0:
            return None
    return exports
