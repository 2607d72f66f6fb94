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


def experts_of_arrivals(rows_Ge: torch.Tensor, num_rows: int) -> torch.Tensor:
    """expert_R, the local expert of each row that arrives by (rank, expert): rows_Ge[g, e] from rank g for expert e.

    num_rows: their sum, which the caller knows. Example: [[2, 3], [1, 4]] -> [0, 0, 1, 1, 1, 0, 1, 1, 1, 1].
    """
    num_ranks, num_local = rows_Ge.shape
    expert_Ge = torch.arange(num_local, device=rows_Ge.device).expand(num_ranks, num_local)
    return torch.repeat_interleave(expert_Ge.flatten(), rows_Ge.flatten(), output_size=num_rows)


def inverse(order_N: torch.Tensor) -> torch.Tensor:
    """The permutation that undoes order_N."""
    undo_N = torch.empty_like(order_N)
    undo_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    return undo_N


def summed_copies(y_ND: torch.Tensor, top_k: int) -> torch.Tensor:
    """y_TD: the sum of each token's copies, which stand together."""
    return y_ND if top_k == 1 else y_ND.unflatten(0, (-1, top_k)).sum(1)


def weighted_sum(y_ND: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
    """y_TD: each token's K copies, which stand together, weighted and summed."""
    return summed_copies(y_ND * weight_TK.reshape(-1, 1), weight_TK.shape[1])
