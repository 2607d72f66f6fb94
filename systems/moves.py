"""Which rank sends which expert where, so that experts get from where they are to where a plan puts them.

Letters: G ranks, E experts; before_EG[e, g] > 0: expert e is on rank g, and after_EG[e, g] > 0: it is to be there.
"""

import numpy as np

from systems.planners.base import owner_of


def moves(before_EG: np.ndarray, after_EG: np.ndarray) -> np.ndarray:
    """moves_GEG (bool): the ranks that have an expert send it to those that lack it, each to as many in their order."""
    holders_E, lacking_EG = (before_EG > 0).sum(1), _lacking(before_EG, after_EG)
    nth_EG = lacking_EG.cumsum(1) - 1
    holder_EG = nth_EG * holders_E[:, None] // lacking_EG.sum(1, keepdims=True).clip(1)
    in_order_EG = np.argsort(before_EG == 0, axis=1, kind="stable")  # an expert's holders first
    sender_EG = np.take_along_axis(in_order_EG, np.where(lacking_EG, holder_EG, 0), 1)
    return (sender_EG == np.arange(before_EG.shape[1])[:, None, None]) & lacking_EG


def broadcasts(before_EG: np.ndarray, after_EG: np.ndarray) -> np.ndarray:
    """[G, E] (bool): the first rank that has an expert sends it, if a rank lacks it."""
    owner_GE = owner_of(before_EG) == np.arange(before_EG.shape[1])[:, None]
    return owner_GE & _lacking(before_EG, after_EG).any(1)


def _lacking(before_EG: np.ndarray, after_EG: np.ndarray) -> np.ndarray:
    return (after_EG > 0) & (before_EG == 0)
