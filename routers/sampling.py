"""Different experts for each token: drawn one after another, or dealt so that every expert gets its number.

Letters in names: T tokens, K experts of a token, E experts.
"""

from functools import lru_cache

import numpy as np

PATIENCE = 4  # draws of a token for each expert that it is to have
NODES = 400  # of the integral below, whose integrand is smooth and vanishes at both ends


def apportion(weights_E: np.ndarray, total: int) -> np.ndarray:
    """int64 [E] with sum `total`, in proportion to the int64 weights, each less than 1 from its quota.

    The largest-remainder method in whole numbers; of equal remainders the first wins.
    """
    floor_E, remainder_E = np.divmod(weights_E * total, weights_E.sum())
    winners = np.argsort(-remainder_E, kind="stable")[: total - floor_E.sum()]
    floor_E[winners] += 1
    return floor_E


def at_most(counts_E: np.ndarray, most: int) -> np.ndarray:
    """The same sum with no number above `most`: what is beyond goes to the others, in proportion to what they have."""
    while excess := int((counts_E - most).clip(min=0).sum()):
        counts_E = counts_E.clip(max=most)
        room_E = most - counts_E
        weights_E = counts_E * (room_E > 0)
        counts_E = counts_E + apportion(weights_E if weights_E.any() else room_E, excess)
    return counts_E


def deal(counts_E: np.ndarray, num_tokens: int, generator: np.random.Generator) -> np.ndarray:
    """int64 [T, K]: expert e for exactly counts_E[e] tokens, at most T of them; K is their sum over T.

    Experts are laid out in a random order, T to a row, and each row is shuffled. Only the expert that ends one row and
    begins the next could be given to a token twice; such tokens swap with others of their row.
    """
    if counts_E.sum() == num_tokens:
        return generator.permutation(np.repeat(np.arange(len(counts_E)), counts_E))[:, None]
    order_E = generator.permutation(len(counts_E))
    rows_KT = np.repeat(order_E, counts_E[order_E]).reshape(-1, max(num_tokens, 1))[:, :num_tokens]
    shared_K = rows_KT[:, 0].copy() if num_tokens else []
    for row, shared in enumerate(shared_K):
        here_T = rows_KT[row]
        generator.shuffle(here_T)
        if row:
            taken_T = rows_KT[row - 1] == shared
            twice = np.flatnonzero(taken_T & (here_T == shared))
            others = generator.permutation(np.flatnonzero(~taken_T & (here_T != shared)))[: len(twice)]
            here_T[twice], here_T[others] = here_T[others], here_T[twice]
    return rows_KT.T


def one_after_another(
    probabilities_E: np.ndarray, num_tokens: int, top_k: int, generator: np.random.Generator
) -> np.ndarray:
    """int64 [T, K]: each expert drawn in proportion to its probability from those that the token has not yet.

    The same distribution as `torch.multinomial`'s: every token draws from all experts, and again where it has that one.
    Where that takes long, the rest is given by exponential clocks, of which those that ring first are the same.
    """
    cumulative_E, last = np.cumsum(probabilities_E), np.flatnonzero(probabilities_E)[-1]
    expert_TK, had_T = np.full((num_tokens, top_k), -1), np.zeros(num_tokens, int)
    for _ in range(PATIENCE * top_k):
        lacking_N = np.flatnonzero(had_T < top_k)
        expert_N = np.searchsorted(cumulative_E, generator.random(len(lacking_N)), side="right").clip(max=last)
        new_N = (expert_TK[lacking_N] != expert_N[:, None]).all(1)
        got_N = lacking_N[new_N]
        expert_TK[got_N, had_T[got_N]] = expert_N[new_N]
        had_T[got_N] += 1
    for token in np.flatnonzero(had_T < top_k):
        left_E = np.setdiff1d(np.flatnonzero(probabilities_E), expert_TK[token])
        clock_E = generator.standard_exponential(len(left_E)) / probabilities_E[left_E]
        expert_TK[token, had_T[token] :] = left_E[np.argsort(clock_E)][: top_k - had_T[token]]
    return expert_TK


def inclusion(probabilities_E: np.ndarray, top_k: int) -> np.ndarray:
    """float64 [E]: how likely `one_after_another` gives a token each expert; they sum to K.

    An expert is among the first K if fewer than K of the other clocks rang before its own, whose time is integrated
    over: exactly, but for rounding.
    """
    value_U, of_E, times_U = np.unique(probabilities_E, return_inverse=True, return_counts=True)
    included_E = np.array(_included(tuple(value_U.tolist()), tuple(times_U.tolist()), top_k))[of_E]
    return included_E * top_k / included_E.sum()


@lru_cache(maxsize=256)
def _included(values: tuple[float, ...], times: tuple[int, ...], top_k: int) -> list[float]:
    """How likely an expert of each probability is included, where so many experts have it."""
    value_U, times_U, included = np.array(values), np.array(times), [0.0] * len(values)
    log_X = np.linspace(np.log(1e-9), np.log(60 / value_U[value_U > 0].min()), NODES)
    time_X = np.exp(log_X)
    rung_UX = -np.expm1(-value_U[:, None] * time_X)
    for own in np.flatnonzero(value_U).tolist():
        fewer_KX = np.zeros((top_k, NODES))  # how likely exactly k of the other clocks have rung
        fewer_KX[0] = 1
        for other_X, count in zip(rung_UX, times_U - (np.arange(len(values)) == own), strict=True):
            for _ in range(count):
                fewer_KX[1:] += other_X * (fewer_KX[:-1] - fewer_KX[1:])
                fewer_KX[0] *= 1 - other_X
        density_X = value_U[own] * np.exp(-value_U[own] * time_X) * time_X  # over the logarithm of time
        included[own] = float(np.trapezoid(density_X * fewer_KX.sum(0), log_X))
    return included
