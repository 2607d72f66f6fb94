"""Different experts for each token: drawn one after another, or dealt so that every expert gets its number.

Letters in names: T tokens, K experts of a token, E experts, S sequences, G groups of experts.
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
    probabilities_SE: np.ndarray,
    num_tokens: int,
    top_k: int,
    generator: np.random.Generator,
    *,
    groups: int = 1,
    most_groups: int = 1,
) -> np.ndarray:
    """int64 [T, K]: each expert drawn in proportion to its probability from those that the token has not yet.

    Token t is of sequence t S // T and has that row's probabilities, which need not sum to 1. Where experts are in
    `groups` equal groups of neighbours, a token's are of at most `most_groups` of them: those of its first experts.

    The same distribution as `torch.multinomial`'s: every token draws from all experts, and again where it may not have
    that one. Where that takes long, the rest is given by exponential clocks, of which those that ring first are the
    same.
    """
    num_sequences, num_experts = probabilities_SE.shape
    sequence_T = np.arange(num_tokens) * num_sequences // max(num_tokens, 1)
    hands = _Hands(num_tokens, top_k, np.arange(num_experts) * groups // num_experts, most_groups)
    _by_rejection(hands, probabilities_SE, sequence_T, generator)
    _by_clocks(hands, probabilities_SE, sequence_T, generator)
    return np.ascontiguousarray(hands.expert_KT.T, dtype=np.int64)


class _Hands:
    """What each token has been given so far, of N tokens that lack some: expert_KT, -1 where nothing yet."""

    def __init__(self, num_tokens: int, top_k: int, group_E: np.ndarray, most_groups: int) -> None:
        self.expert_KT = np.full((top_k, num_tokens), -1, np.int32)  # rows of many tokens, which are compared fast
        self._had_T = np.zeros(num_tokens, np.int32)
        self._group_E, self._most_groups, self._limited = group_E, most_groups, group_E[-1] >= most_groups
        self._used_GT = np.zeros((group_E[-1] + 1, num_tokens), bool)
        self._num_used_T = np.zeros(num_tokens, np.int32)

    def lacking(self) -> np.ndarray:
        """int64 [N]: the tokens that have not all."""
        return np.flatnonzero(self._had_T < len(self.expert_KT))

    def may_have(self, token_N: np.ndarray, expert_N: np.ndarray) -> np.ndarray:
        """bool [N]: whether a token may be given an expert that it does not have: not of too many groups."""
        if not self._limited:
            return np.ones(len(token_N), bool)
        used_N = self._used_GT[self._group_E[expert_N], token_N]
        return used_N | (self._num_used_T[token_N] < self._most_groups)

    def has(self, token_N: np.ndarray, expert_N: np.ndarray) -> np.ndarray:
        """bool [N]: whether a token has been given an expert."""
        return (self.expert_KT[: self._had_T.max(), token_N] == expert_N).any(0)

    def give(self, token_N: np.ndarray, expert_N: np.ndarray) -> None:
        self.expert_KT[self._had_T[token_N], token_N] = expert_N
        self._had_T[token_N] += 1
        if self._limited:
            group_N = self._group_E[expert_N]
            self._num_used_T[token_N] += ~self._used_GT[group_N, token_N]
            self._used_GT[group_N, token_N] = True


def _by_rejection(
    hands: _Hands, probabilities_SE: np.ndarray, sequence_T: np.ndarray, generator: np.random.Generator
) -> None:
    """A draw from all experts for every token that lacks one, kept if it may have that; again some times."""
    drawn = _Drawn(probabilities_SE, len(sequence_T) * len(hands.expert_KT))
    for _ in range(PATIENCE * len(hands.expert_KT)):
        token_N = hands.lacking()
        expert_N = drawn(sequence_T[token_N], generator)
        may_N = hands.may_have(token_N, expert_N) & ~hands.has(token_N, expert_N)
        hands.give(token_N[may_N], expert_N[may_N])


class _Drawn:
    """Experts by their probability in a sequence, whose cumulative sum a number between 0 and 1 is looked up in.

    A table says for most numbers, by their first digits, where that is. It pays where draws are many.
    """

    def __init__(self, probabilities_SE: np.ndarray, num_draws: int) -> None:
        num_sequences, self._num_experts = probabilities_SE.shape
        cumulative_SE = np.cumsum(probabilities_SE, axis=1)
        # One ascending row of numbers: a sequence's begin at its index.
        self._cumulative_N = (cumulative_SE / cumulative_SE[:, -1:] + np.arange(num_sequences)[:, None]).ravel()
        self._digits = 16 * self._num_experts if num_draws > 64 * num_sequences * self._num_experts else 1
        edge_N = np.arange(num_sequences * self._digits + 1) / self._digits
        first_N = np.searchsorted(self._cumulative_N, edge_N, side="right")
        self._known_N = np.where(first_N[1:] == first_N[:-1], first_N[:-1], -1).astype(np.int32)

    def __call__(self, sequence_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """int64 [N]: an expert of each sequence."""
        number_N = sequence_N + generator.random(len(sequence_N))
        place_N = self._known_N[(number_N * self._digits).astype(np.int32)]
        open_N = np.flatnonzero(place_N < 0)
        place_N[open_N] = np.searchsorted(self._cumulative_N, number_N[open_N], side="right")
        # The sum may have rounded up.
        return (place_N - sequence_N * self._num_experts).clip(max=self._num_experts - 1)


def _by_clocks(
    hands: _Hands, probabilities_SE: np.ndarray, sequence_T: np.ndarray, generator: np.random.Generator
) -> None:
    """To every token that lacks experts those whose clocks ring first."""
    token_N, expert_E = hands.lacking(), np.arange(probabilities_SE.shape[1])
    probabilities_NE = probabilities_SE[sequence_T[token_N]]
    with np.errstate(divide="ignore"):  # the clock of an expert of no probability never rings
        clock_NE = generator.standard_exponential(probabilities_NE.shape) / probabilities_NE
    clock_NE[(hands.expert_KT[:, token_N, None] == expert_E).any(0)] = np.inf
    while len(token_N):
        may_NE = hands.may_have(np.repeat(token_N, len(expert_E)), np.tile(expert_E, len(token_N)))
        expert_N = np.where(may_NE.reshape(clock_NE.shape), clock_NE, np.inf).argmin(1)
        hands.give(token_N, expert_N)
        clock_NE[np.arange(len(token_N)), expert_N] = np.inf
        still_N = np.isin(token_N, hands.lacking())
        token_N, clock_NE = token_N[still_N], clock_NE[still_N]


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
