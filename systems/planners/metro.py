"""METRO: each expert's tokens whole to one of its replicas, so that no rank reads many experts' weights."""

import numpy as np

from systems.planners.base import owner_of
from systems.planners.bound import least_rows
from systems.planners.dispatch import to_owner
from systems.planners.eplb import EPLB
from systems.planners.lplb import LPLB
from systems.planners.options import check_flag, check_whole_number


class METRO(EPLB):
    """Replicas as EPLB places them; every expert with tokens is computed on one rank, and the rank with most such
    experts is to have few, because decoding takes the time in which their weights are read. Tokens do not count.

    Experts with one holder are counted first, then the others in order, each to the holder with the fewest, the first
    of equal ones. `exact`: the smallest possible maximum instead, by a maximum flow. With more than
    `token_form_above` tokens an active expert tokens are levelled and not experts, as well as replicas allow: so does
    TEMPO (arXiv 2608.13057) from about 160 on. None: never.
    Source: a third party's kernel for SGLang, described second-hand; the authors' code was not found.
    Ours: the exact variant does not prefer ranks with few tokens.
    """

    def __init__(self, extra_replicas: int = 32, exact: bool = False, token_form_above: int | None = None) -> None:
        super().__init__(extra_replicas)
        check_flag("exact", exact)
        if token_form_above is not None:
            check_whole_number("token_form_above", token_form_above, 0)
        self._levelled = LPLB(extra_replicas, exact=True)
        self.exact, self.token_form_above = exact, token_form_above

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        active_E, limit = tokens_GE.sum(0) > 0, self.token_form_above
        if limit is not None and tokens_GE.sum() > limit * active_E.sum():
            return self._levelled.dispatch(tokens_GE, replicas_EG, owner_E)
        holds_EG = replicas_EG > 0
        if self.exact:
            holds_EG = np.where(active_E[:, None], least_rows(active_E.astype(np.int64), holds_EG)[1], holds_EG)
            return to_owner(tokens_GE, replicas_EG, owner_of(holds_EG))
        return to_owner(tokens_GE, replicas_EG, fewest_active(active_E, holds_EG))


def fewest_active(active_E: np.ndarray, holds_EG: np.ndarray) -> np.ndarray:
    """int64 [E]: the rank that computes each expert."""
    alone_E, rank_E = holds_EG.sum(1) == 1, owner_of(holds_EG)
    active = np.bincount(rank_E[alone_E & active_E], minlength=holds_EG.shape[1]).tolist()
    for expert in np.flatnonzero(~alone_E & active_E).tolist():
        rank = min(np.flatnonzero(holds_EG[expert]).tolist(), key=active.__getitem__)
        active[rank] += 1
        rank_E[expert] = rank
    return rank_E
