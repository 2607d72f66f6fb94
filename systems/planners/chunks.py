"""Chunks: parts of an expert's tokens that go to one rank. How many a chunk is to have is its quota; which ranks'
tokens they are is said here, in whole numbers that are conserved.

Letters beside those of base.py: C chunks, each of another pair of expert and rank. rows_CG[c, g]: rank g's tokens in
chunk c. quota_C: rows of each chunk; those of an expert add up to its tokens.
"""

from abc import abstractmethod
from typing import NamedTuple

import numpy as np

from systems.planners.base import Costs, Planner, as_replicas, owner_of


class Chunks(NamedTuple):
    """expert_C, rank_C: whose tokens they are and where they go. rows_CG: where they come from."""

    expert_C: np.ndarray
    rank_C: np.ndarray
    rows_CG: np.ndarray

    def sent(self, num_experts: int) -> np.ndarray:
        """sent_GEG of these chunks (`Planner.dispatch`)."""
        ranks = self.rows_CG.shape[1]
        sent_GEG = np.zeros((ranks, num_experts, ranks), np.int64)
        sent_GEG[:, self.expert_C, self.rank_C] = self.rows_CG.T
        return sent_GEG


class BatchPlanner(Planner):
    """Decides by a batch's own counts which ranks help an expert's owner, and with which tokens: both at once.

    Experts live on one rank each, their owner, which always holds them. `place` remembers its decision for the
    `dispatch` of the same counts, so it is made once; other counts are divided among the holders that there are.
    """

    _decided: tuple[np.ndarray, Chunks] | None = None

    @abstractmethod
    def divide(self, tokens_GE: np.ndarray, owner_E: np.ndarray, may_hold_EG: np.ndarray) -> Chunks:
        """All tokens in chunks, none on a rank where may_hold_EG is false; owners may hold what they own."""

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """Loads that are estimates are rounded."""
        assert (current_EG.sum(1) == 1).all(), "an expert lives on one rank"
        tokens_GE, owner_E = np.rint(loads_GE).astype(np.int64), owner_of(current_EG)
        chunks = self.divide(tokens_GE, owner_E, np.ones(current_EG.shape, bool))
        self._decided = tokens_GE, chunks
        replicas_EG = as_replicas(owner_E, len(loads_GE))
        replicas_EG[chunks.expert_C, chunks.rank_C] = 1
        return replicas_EG

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        decided, self._decided = self._decided, None
        if decided and np.array_equal(decided[0], tokens_GE) and replicas_EG[decided[1][:2]].all():
            return decided[1].sent(len(replicas_EG))
        return self.divide(tokens_GE, owner_E, replicas_EG > 0).sent(len(replicas_EG))


def in_order(tokens_GE: np.ndarray, expert_C: np.ndarray, quota_C: np.ndarray) -> np.ndarray:
    """rows_CG of chunks cut out of each expert's tokens, numbered rank after rank; expert_C must not fall."""
    end_EG = tokens_GE.T.cumsum().reshape(tokens_GE.T.shape)  # all tokens in one line, expert after expert
    ends_CG, end_C = end_EG[expert_C], quota_C.cumsum()
    starts_CG, start_C = ends_CG - tokens_GE.T[expert_C], end_C - quota_C
    return np.maximum(np.minimum(ends_CG, end_C[:, None]) - np.maximum(starts_CG, start_C[:, None]), 0)
