"""Where tokens go, once it is known where experts are: whole numbers, conserved, only to ranks with a replica.

Letter beside those of base.py: H hosts, the pairs of an expert and a rank that holds it, in the order of experts.
"""

import numpy as np

GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 fill the interval evenly, however many there are


def to_owner(tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
    """sent_GEG: every token to its expert's owner."""
    return to_hosts(tokens_GE, np.arange(len(owner_E)), owner_E, len(owner_E))


def stay_or_go_to_owner(tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
    """sent_GEG: tokens whose own rank has their expert stay, the others go to its owner (FasterMoE, Prophet)."""
    sent_GEG = to_owner(np.where(replicas_EG.T > 0, 0, tokens_GE), replicas_EG, owner_E)
    expert_H, rank_H = np.nonzero(replicas_EG)
    sent_GEG[rank_H, expert_H, rank_H] += tokens_GE[rank_H, expert_H]
    return sent_GEG


def evenly(tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
    """sent_GEG: each rank spreads its tokens for an expert over all of its replicas, and their totals are even too.

    The parts of two replicas differ by at most one token, those of one rank's tokens and those of all ranks'.
    """
    expert_H, rank_H = np.nonzero(replicas_EG)
    dealt_GH = deal(tokens_GE, expert_H, replicas_EG[expert_H, rank_H])
    return to_hosts(dealt_GH, expert_H, rank_H, len(replicas_EG))


def deal(tokens_GE: np.ndarray, expert_H: np.ndarray, places_H: np.ndarray) -> np.ndarray:
    """int64 [G, H]: tokens dealt out in turn to the places that hosts have for their expert.

    An expert's tokens are numbered, rank after rank, and number n goes to place (first + n) mod P of its P places. A
    place gets every P-th of any consecutive numbers, so one or none more than another of a rank's tokens, and of all.
    Experts begin at different places, because one token more on the first rank of each would burden that rank.
    """
    dealt_GH = tokens_GE[:, expert_H]
    shared_H = np.bincount(expert_H)[expert_H] > 1  # few: the only host of an expert gets all of its tokens
    experts, expert_S = np.unique(expert_H[shared_H], return_inverse=True)
    dealt_GH[:, shared_H] = _in_turn(tokens_GE[:, experts], expert_S, places_H[shared_H])
    return dealt_GH


def _in_turn(tokens_GE: np.ndarray, expert_H: np.ndarray, places_H: np.ndarray) -> np.ndarray:
    num_experts = tokens_GE.shape[1]
    places_E = np.bincount(expert_H, places_H, num_experts).astype(np.int64)
    first_E = (np.arange(num_experts) * GOLDEN % 1 * places_E).astype(np.int64)
    number_XE = np.vstack([first_E, first_E + tokens_GE.cumsum(0)])  # of the first token of each rank, and the end
    round_XE, place_XE = np.divmod(number_XE, np.maximum(places_E, 1))
    before_H = places_H.cumsum() - places_H - (places_E.cumsum() - places_E)[expert_H]  # of the same expert's places
    begun_XH = np.clip(place_XE[:, expert_H] - before_H, 0, places_H)
    return np.diff(round_XE[:, expert_H] * places_H + begun_XH, axis=0)


def to_hosts(tokens_GH: np.ndarray, expert_H: np.ndarray, rank_H: np.ndarray, num_experts: int) -> np.ndarray:
    """sent_GEG from how many tokens of each rank go to each host."""
    ranks = len(tokens_GH)
    sent_GEG = np.zeros((ranks, num_experts, ranks), np.int64)
    sent_GEG[:, expert_H, rank_H] = tokens_GH
    return sent_GEG
