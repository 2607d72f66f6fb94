"""Scores that agree with experts which have been drawn: what a gate would have said of those that it did not take."""

import numpy as np

RARE = 0.5  # copies that an expert counts for beside those that it has, so that none is impossible


def scores_of(expert_TK: np.ndarray, num_experts: int, generator: np.random.Generator) -> np.ndarray:
    """float32 [T, E], of which each token's K largest are its experts, first choice first.

    Log popularity plus Gumbel noise, given which experts come out on top (the Gumbel-max trick and its reverse:
    Maddison et al., "A* Sampling", NeurIPS'14): a first choice is as large as the largest of all, each other one and
    every expert that was not taken no larger than the choice before. Popularity is that of these very draws.
    """
    num_tokens, top_k = expert_TK.shape
    popularity_E = np.bincount(expert_TK.ravel(), minlength=num_experts) + RARE
    popularity_E = popularity_E / popularity_E.sum()
    left_T, bound_T = np.ones(num_tokens), np.full(num_tokens, np.inf)
    score_TK = np.empty((num_tokens, top_k))
    for choice in range(top_k):
        bound_T = below(np.log(left_T), bound_T, generator)
        score_TK[:, choice] = bound_T
        left_T = np.maximum(left_T - popularity_E[expert_TK[:, choice]], popularity_E.min())
    score_TE = below(np.log(popularity_E)[None].repeat(num_tokens, 0), bound_T[:, None], generator)
    np.put_along_axis(score_TE, expert_TK, score_TK, axis=1)
    return score_TE.astype(np.float32)


def below(location: np.ndarray, bound: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gumbel numbers at these locations, none above its bound."""
    return location - np.log(np.exp(location - bound) - np.log(generator.random(location.shape)))
