"""Index arithmetic between token order and expert order; pure functions."""

import torch


def group_by_expert(expert_N: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort token copies by expert.

    Returns (order_N, rows_E): order_N[i] is the copy that stands at place i, first come first in its expert, and
    rows_E counts the copies of each expert. An id of num_experts marks padding: it sorts last and is not counted.
    No device-to-host synchronisation.
    """
    order_N = torch.argsort(expert_N, stable=True)
    rows = torch.zeros(num_experts + 1, dtype=torch.int64, device=expert_N.device)
    rows.scatter_add_(0, expert_N, torch.ones_like(expert_N))
    return order_N, rows[:num_experts]


def regroup(rows_Ge: torch.Tensor) -> torch.Tensor:
    """Where rows that arrive by (rank, expert) stand when sorted by (expert, rank).

    rows_Ge[g, e] rows came from rank g for local expert e. Returns order_R so that x_RD[order_R] has all rows of
    expert 0 first. Example: [[2, 3], [1, 4]] -> [0, 1, 5, 2, 3, 4, 6, 7, 8, 9].
    """
    num_ranks, num_local = rows_Ge.shape
    expert_Ge = torch.arange(num_local, device=rows_Ge.device).expand(num_ranks, num_local)
    expert_R = torch.repeat_interleave(expert_Ge.flatten(), rows_Ge.flatten())
    return torch.argsort(expert_R, stable=True)


def inverse(order_N: torch.Tensor) -> torch.Tensor:
    """The permutation that undoes order_N."""
    undo_N = torch.empty_like(order_N)
    undo_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    return undo_N
