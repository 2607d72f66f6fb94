"""Where tokens go, once it is known where experts are: whole numbers, conserved, only to ranks with a replica."""

import numpy as np


def to_owner(tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
    """sent_GEG: every token to its expert's owner."""
    owner_EG = owner_E[:, None] == np.arange(tokens_GE.shape[0])
    return tokens_GE[:, :, None] * owner_EG


def stay_or_go_to_owner(tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
    """sent_GEG: tokens whose own rank has their expert stay, the others go to its owner (FasterMoE, Prophet)."""
    hosted_GE = replicas_EG.T > 0
    sent_GEG = to_owner(np.where(hosted_GE, 0, tokens_GE), replicas_EG, owner_E)
    here_G = np.arange(len(tokens_GE))
    sent_GEG[here_G, :, here_G] += np.where(hosted_GE, tokens_GE, 0)
    return sent_GEG


def evenly(tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
    """sent_GEG: each expert's tokens of all ranks in equal parts over its replicas, numbered rank after rank.

    Replica r of R takes the tokens whose number (rank after rank) is between floor(rN/R) and floor((r+1)N/R), so the
    parts of an expert differ by at most one token.
    """
    ranks = len(tokens_GE)
    total_E, last_EG = tokens_GE.sum(0), replicas_EG.cumsum(1)
    cut_EG = last_EG * total_E[:, None] // last_EG[:, -1:]  # where the share of each rank ends
    source_EG = tokens_GE.T.cumsum(1)
    ends_EGG = np.minimum(source_EG[:, :, None], cut_EG[:, None, :])
    starts_EGG = np.maximum(
        np.concatenate([np.zeros_like(source_EG[:, :1]), source_EG[:, :-1]], 1)[:, :, None],
        np.concatenate([np.zeros_like(cut_EG[:, :1]), cut_EG[:, :-1]], 1)[:, None, :],
    )
    assert starts_EGG.shape[1:] == (ranks, ranks)
    return np.maximum(ends_EGG - starts_EGG, 0).transpose(1, 0, 2)
