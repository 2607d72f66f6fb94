"""Chunks: parts of an expert's tokens that go to one rank. How many a chunk is to have is its quota; which ranks'
tokens they are is said here, in whole numbers that are conserved.

Letters beside those of base.py: C chunks, each of another pair of expert and rank. rows_CG[c, g]: rank g's tokens in
chunk c. quota_C: rows of each chunk; those of an expert add up to its tokens.
"""

from abc import abstractmethod
from typing import NamedTuple

import numpy as np

from systems.planners.base import Costs, Planner, as_replicas, owner_of
from systems.planners.dispatch import stay_or_go_to_owner, to_hosts


class Chunks(NamedTuple):
    """expert_C, rank_C: whose tokens they are and where they go. rows_CG: where they come from."""

    expert_C: np.ndarray
    rank_C: np.ndarray
    rows_CG: np.ndarray

    def sent(self, num_experts: int) -> np.ndarray:
        """sent_GEG of these chunks (`Planner.dispatch`)."""
        return to_hosts(self.rows_CG.T, self.expert_C, self.rank_C, num_experts)


class BatchPlanner(Planner):
    """Decides by a batch's own counts which ranks help an expert's owner, and with which tokens: both at once.

    Experts live on one rank each, their owner, which always holds them. `place` remembers its decision for the
    `dispatch` of the same counts. Tokens of other counts stay with a holder or go to owners.
    """

    _decided: tuple[np.ndarray, Chunks] | None = None

    @abstractmethod
    def divide(self, tokens_GE: np.ndarray, owner_E: np.ndarray) -> Chunks:
        """All tokens in chunks; an owner may have none of its expert's."""

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """Loads that are estimates are rounded."""
        assert (current_EG.sum(1) == 1).all(), "an expert lives on one rank"
        tokens_GE, owner_E = np.rint(loads_GE).astype(np.int64), owner_of(current_EG)
        chunks = self.divide(tokens_GE, owner_E)
        self._decided = tokens_GE, chunks
        replicas_EG = as_replicas(owner_E, len(loads_GE))
        replicas_EG[chunks.expert_C, chunks.rank_C] = 1
        return replicas_EG

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        if self._decided and self._fits(tokens_GE, replicas_EG, *self._decided):
            return self._decided[1].sent(len(replicas_EG))
        return stay_or_go_to_owner(tokens_GE, replicas_EG, owner_E)

    def _fits(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, decided_GE: np.ndarray, chunks: Chunks) -> bool:
        return np.array_equal(decided_GE, tokens_GE) and bool(replicas_EG[chunks.expert_C, chunks.rank_C].all())


def in_order(tokens_GE: np.ndarray, expert_C: np.ndarray, quota_C: np.ndarray) -> np.ndarray:
    """rows_CG of chunks cut out of each expert's tokens, numbered rank after rank; expert_C must not fall."""
    end_EG = tokens_GE.T.cumsum().reshape(tokens_GE.T.shape)  # all tokens in one line, expert after expert
    ends_CG, end_C = end_EG[expert_C], quota_C.cumsum()
    starts_CG, start_C = ends_CG - tokens_GE.T[expert_C], end_C - quota_C
    return np.maximum(np.minimum(ends_CG, end_C[:, None]) - np.maximum(starts_CG, start_C[:, None]), 0)


def locally_first(tokens_GE: np.ndarray, expert_C: np.ndarray, rank_C: np.ndarray, quota_C: np.ndarray) -> np.ndarray:
    """rows_CG of chunks that first take their own rank's tokens; every rank deals out its other ones in proportion to
    what the quotas then lack, by the largest remainder: quotas are met but for rounding. expert_C must not fall.
    """
    rows_CG = np.zeros((len(expert_C), len(tokens_GE)), np.int64)
    local_C = np.minimum(tokens_GE[rank_C, expert_C], quota_C)
    rows_CG[np.arange(len(expert_C)), rank_C] = local_C
    left_GE = tokens_GE.copy()
    left_GE[rank_C, expert_C] -= local_C
    return rows_CG + in_proportion(left_GE, expert_C, quota_C - local_C)


def in_proportion(tokens_GE: np.ndarray, expert_C: np.ndarray, weight_C: np.ndarray) -> np.ndarray:
    """rows_CG: every rank's tokens for an expert in proportion to its chunks' weights (whole numbers), by the largest
    remainder, the first of equal ones. expert_C must not fall; an expert with tokens needs a weight.
    """
    first_C = np.searchsorted(expert_C, expert_C)  # the first chunk of the same expert
    total_C = np.bincount(expert_C, weight_C)[expert_C].astype(np.int64).clip(1)
    rows_CG, remainder_CG = np.divmod(tokens_GE.T[expert_C] * weight_C[:, None], total_C[:, None])
    starts = np.unique(first_C)
    missing_CG = tokens_GE.T[expert_C] - np.add.reduceat(rows_CG, starts)[np.searchsorted(starts, first_C)]
    # Within an expert the largest first: all of one sort, by the expert and then by the remainder.
    order_CG = np.argsort(expert_C[:, None] * (total_C.max() + 1) - remainder_CG, axis=0, kind="stable")
    place_CG = np.empty_like(order_CG)
    np.put_along_axis(place_CG, order_CG, np.arange(len(expert_C))[:, None], 0)
    return rows_CG + (place_CG - first_C[:, None] < missing_CG)


def floors_first(tokens_GE: np.ndarray, expert_C: np.ndarray, quota_C: np.ndarray) -> np.ndarray:
    """rows_CG: every rank's tokens for an expert in proportion to its chunks' quotas, rounded down; what is left,
    numbered rank after rank, fills what the quotas then lack. expert_C must not fall and has every expert.
    """
    rows_CG = tokens_GE.T[expert_C] * quota_C[:, None] // tokens_GE.sum(0)[expert_C, None].clip(1)
    starts = np.searchsorted(expert_C, np.arange(tokens_GE.shape[1]))
    left_GE = tokens_GE - np.add.reduceat(rows_CG, starts).T
    return rows_CG + in_order(left_GE, expert_C, quota_C - rows_CG.sum(1))
