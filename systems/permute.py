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


def places_in_experts(expert_TK: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the copies of each expert.

    Returns (place_TK, rows_E): place_TK[t, k] copies of the same expert come before copy (t, k), and rows_E counts the
    copies of each expert. All first choices come before any second one, and tokens keep their order.
    Example: [[1, 0], [0, 1], [1, 0]] -> [[0, 1], [0, 2], [1, 2]], [3, 3].
    """
    expert_KT = expert_TK.T
    expert_N = expert_KT.flatten()
    order_N, rows_E = group_by_expert(expert_N, num_experts)
    first_E = rows_E.cumsum(0) - rows_E
    place_N = inverse(order_N) - first_E[expert_N]
    return place_N.view(expert_KT.shape).T, rows_E


def inverse(order_N: torch.Tensor) -> torch.Tensor:
    """The permutation that undoes order_N."""
    undo_N = torch.empty_like(order_N)
    undo_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    return undo_N


def weighted_sum(y_ND: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
    """y_TD: each token's K copies, which stand together, weighted and summed."""
    if weight_TK.shape[1] == 1:
        return y_ND * weight_TK
    return (y_ND.unflatten(0, weight_TK.shape) * weight_TK.unsqueeze(2)).sum(1)
