"""HarMoEny (arXiv 2506.12417): tokens move from the busiest rank to the idlest, and experts follow from the host."""

import numpy as np

from systems.planners.chunks import BatchPlanner, Chunks
from systems.planners.options import check_whole_number


class HarMoEny(BatchPlanner):
    """Again and again the busiest rank's expert with most tokens gives tokens to the rank with fewest, up to the mean,
    those of the rank that sends most first; until no rank is above the mean, or fewer than `least_move` tokens (q)
    could move.

    Every rank has all experts in host memory, so a helper fetches the ones that it lacks (system.migration swap_in).
    Unconfirmed: how q follows from the machine; the authors run 128 to 4096, and 150 is the default of their code.
    Differs: the source streams foreign experts through two slots of its own experts while it computes, then loads those
    again; here they get slots of their own and stay until these are wanted. So it needs more memory, and fetches less.
    """

    def __init__(self, least_move: int = 150) -> None:
        check_whole_number("least_move", least_move, 1)
        self.least_move = least_move

    def divide(self, tokens_GE: np.ndarray, owner_E: np.ndarray) -> Chunks:
        kept_EG, helped = self.moved(tokens_GE, owner_E)
        helped = {pair: rows_G for pair, rows_G in helped.items() if rows_G.any()}  # some pass their tokens on
        expert_H, rank_H = np.array(list(helped), np.int64).reshape(-1, 2).T
        expert_C = np.concatenate([np.arange(len(owner_E)), expert_H])
        return Chunks(expert_C, np.concatenate([owner_E, rank_H]), np.vstack([kept_EG, *helped.values()]))

    def moved(self, tokens_GE: np.ndarray, owner_E: np.ndarray) -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
        """kept_EG at the owners, and (expert, helper) -> rows_G, both by the ranks that send them."""
        ranks, owner = len(tokens_GE), owner_E.tolist()
        kept_EG, helped = np.array(tokens_GE.T, order="C"), {}
        tokens: list[dict[int, int]] = [{} for _ in range(ranks)]  # of each rank's experts
        for expert, (rank, total) in enumerate(zip(owner, tokens_GE.sum(0).tolist(), strict=True)):
            tokens[rank][expert] = total
        load = [sum(of_rank.values()) for of_rank in tokens]
        mean = sum(load) // ranks
        while (most := max(load)) > mean and (room := mean - min(load)) >= self.least_move:
            over, under = load.index(most), load.index(min(load))
            expert = max(tokens[over], key=tokens[over].__getitem__)
            if tokens[over][expert] < self.least_move:
                break
            from_G, to_G = (
                kept_EG[expert] if rank == owner[expert] else helped.setdefault((expert, rank), np.zeros_like(load))
                for rank in (over, under)
            )
            moved_G, rows = heaviest_first(from_G, room), min(room, tokens[over][expert])
            from_G -= moved_G
            to_G += moved_G
            tokens[over][expert] -= rows
            tokens[under][expert] = tokens[under].get(expert, 0) + rows
            load[over], load[under] = load[over] - rows, load[under] + rows
        return kept_EG, helped


def heaviest_first(rows_G: np.ndarray, limit: int) -> np.ndarray:
    """int64 [G]: up to `limit` of these rows, all of the rank with most before any of the next."""
    order_G = np.argsort(-rows_G, kind="stable")
    falling_G, taken_G = rows_G[order_G], np.empty_like(rows_G)
    room_G = limit - falling_G.cumsum() + falling_G
    taken_G[order_G] = np.minimum(falling_G, np.maximum(room_G, 0))
    return taken_G
