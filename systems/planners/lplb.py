"""LPLB (DeepSeek; SGLang's form): replicas placed beforehand, each batch divided among them by a linear program."""

import numpy as np
import torch

from systems.planners.bound import least_rows
from systems.planners.chunks import Chunks, floors_first, in_proportion
from systems.planners.eplb import EPLB
from systems.planners.options import check_flag

STEPS, REACH, ARTIFICIAL_COST = 5, 0.999, 1000.0
SETTLED, NO_ARTIFICIAL, RESIDUAL = 0.1, 1e-4, 0.05  # the solution counts if its last step and its errors are below


class LPLB(EPLB):
    """Replicas as EPLB places them; a batch's tokens go to them in the shares for which the busiest rank has fewest.

    The shares are those of five steps of an interior-point method, or even ones where it has not converged. `exact`:
    the true minimum instead, by a maximum flow, which is not in the source. Each rank sends floor(share x its tokens).
    Source: sgl-project/sglang, srt/eplb/lplb_solver.py, and the vendored LPLB of shizhengLi/deepseek-lplb-learning.
    Ours: the tokens that rounding leaves are dealt out so that each replica gets its share of all, where SGLang draws a
    replica for every token and DeepSeek permutes them; experts without tokens are left out of the program.
    Left out: DeepSeek's topologies, in which a replica goes to a neighbour of its expert's rank.
    """

    def __init__(self, extra_replicas: int = 32, exact: bool = False) -> None:
        super().__init__(extra_replicas)
        check_flag("exact", exact)
        self.exact = exact

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        load_E, holds_EG = tokens_GE.sum(0), replicas_EG > 0
        expert_C, rank_C = np.nonzero(holds_EG)
        if self.exact:
            quota_C = least_rows(load_E, holds_EG)[1][expert_C, rank_C]
        else:
            quota_C = in_proportion(load_E[None], expert_C, _whole(shares(load_E, holds_EG)))[:, 0]
        return Chunks(expert_C, rank_C, floors_first(tokens_GE, expert_C, quota_C)).sent(len(load_E))


def _whole(share_C: np.ndarray) -> np.ndarray:
    """Shares as whole numbers in proportion, to one in 2^24."""
    return np.maximum(np.rint(share_C * 2**24), 1).astype(np.int64)


def shares(load_E: np.ndarray, holds_EG: np.ndarray) -> np.ndarray:
    """float64 [C] of every pair of expert and holder, expert after expert: the share of the expert's tokens."""
    expert_C, rank_C = np.nonzero(holds_EG)
    count_E = holds_EG.sum(1)
    share_C = 1 / count_E[expert_C]
    free_X = np.flatnonzero((count_E > 1) & (load_E > 0))
    if not len(free_X):
        return share_C
    weight_E = load_E / load_E.sum()
    fixed_G = np.where(count_E == 1, weight_E, 0) @ holds_EG
    free_C = np.isin(expert_C, free_X)
    program = standard_form(weight_E[free_X], fixed_G, np.searchsorted(free_X, expert_C[free_C]), rank_C[free_C])
    # By torch, because a rank's torch has the threads that the rank has; NumPy's products take all of the machine.
    if (x_V := solve(*map(torch.from_numpy, program))) is not None:
        x_P = x_V[: free_C.sum()].numpy()
        share_C[free_C] = x_P / np.bincount(expert_C[free_C], x_P)[expert_C[free_C]]
    return share_C


def standard_form(
    weight_X: np.ndarray, fixed_G: np.ndarray, expert_P: np.ndarray, rank_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A, b, c) of: minimise c x where A x = b, x >= 0. x: the load on each of P pairs of expert and holder, the room
    of each of G ranks, the largest load, and an artificial variable with which x = 1 solves A x = b.

    Rows: the pairs of each of X experts add up to its weight; a rank's pairs, room and fixed load to the largest load.
    """
    experts, ranks, pairs = len(weight_X), len(fixed_G), len(expert_P)
    a_RV = np.zeros((experts + ranks, pairs + ranks + 2))
    a_RV[expert_P, np.arange(pairs)] = 1
    a_RV[experts + rank_P, np.arange(pairs)] = 1
    a_RV[experts + np.arange(ranks), pairs + np.arange(ranks)] = 1
    a_RV[experts:, -2] = -1
    b_R = np.concatenate([weight_X, -fixed_G])
    a_RV[:, -1] = b_R - a_RV.sum(1)
    c_V = np.zeros(a_RV.shape[1])
    c_V[-2:] = 1, ARTIFICIAL_COST
    return a_RV, b_R, c_V


def solve(a_RV: torch.Tensor, b_R: torch.Tensor, c_V: torch.Tensor) -> torch.Tensor | None:
    """x_V after five steps of affine scaling from x = 1; None where they have not converged."""
    x_V, longest = torch.ones_like(c_V), torch.tensor(0.0)
    for _ in range(STEPS):
        scaled_RV = a_RV * x_V
        factor_RR, failed = torch.linalg.cholesky_ex(scaled_RV @ scaled_RV.T)
        if failed:
            return None
        price_R = torch.cholesky_solve((scaled_RV @ (x_V * c_V))[:, None], factor_RR)[:, 0]
        step_V = x_V * (c_V - price_R @ a_RV)
        longest = step_V.max()
        x_V = x_V * (1 - REACH / longest * step_V)
    converged = longest < SETTLED and x_V[-1] < NO_ARTIFICIAL and (a_RV @ x_V - b_R).abs().max() < RESIDUAL
    return x_V if converged else None
