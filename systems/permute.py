"""Index arithmetic between token order and expert order; pure functions."""

import torch
from torch.nn.functional import pad


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


def experts_of_arrivals(rows_Ge: torch.Tensor, num_rows: int, slot_e: torch.Tensor | None = None) -> torch.Tensor:
    """slot_R, the slot of each row that arrives by (rank, expert): rows_Ge[g, e] from rank g for expert e.

    num_rows: their sum, which the caller knows. slot_e: where each expert is here, if not in this order.
    Example: [[2, 3], [1, 4]] -> [0, 0, 1, 1, 1, 0, 1, 1, 1, 1].
    """
    num_ranks, num_local = rows_Ge.shape
    slot_e = torch.arange(num_local, device=rows_Ge.device) if slot_e is None else slot_e
    slot_Ge = slot_e.expand(num_ranks, num_local)
    return torch.repeat_interleave(slot_Ge.flatten(), rows_Ge.flatten(), output_size=num_rows)


def transposed_blocks(rows_AB: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Where rows stand in blocks by (a, b) that are wanted by (b, a): x_N[result] has block (0, 0), (1, 0), ...

    rows_AB: rows of each block; num_rows: their sum, which the caller knows.
    Example: [[1, 2], [2, 0]] -> [0, 3, 4, 1, 2].
    """
    rows_BA = rows_AB.T.contiguous()
    begins_BA = (rows_AB.flatten().cumsum(0) - rows_AB.flatten()).view_as(rows_AB).T
    shift_BA = begins_BA.flatten() - (rows_BA.flatten().cumsum(0) - rows_BA.flatten())
    shift_N = torch.repeat_interleave(shift_BA, rows_BA.flatten(), output_size=num_rows)
    return torch.arange(num_rows, device=rows_AB.device) + shift_N


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


def summed_copies(y_ND: torch.Tensor, top_k: int) -> torch.Tensor:
    """y_TD: the sum of each token's copies, which stand together."""
    return y_ND if top_k == 1 else y_ND.unflatten(0, (-1, top_k)).sum(1)


def weighted_sum(y_ND: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
    """y_TD: each token's K copies, which stand together, weighted and summed."""
    return summed_copies(y_ND * weight_TK.reshape(-1, 1), weight_TK.shape[1])


def packed_choices(expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
    """int32 [T, 2K]: experts and the bits of their float32 weights, for one exchange."""
    return torch.cat([expert_TK.int(), weight_TK.float().view(torch.int32)], 1)


def unpacked_choices(choices_M2K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """expert_N (int64) and weight_N (float32) of all copies."""
    expert_MK, weight_MK = choices_M2K.chunk(2, 1)
    return expert_MK.flatten().long(), weight_MK.contiguous().view(torch.float32).flatten()


def filled_up(x: torch.Tensor, padding: int, value: int) -> torch.Tensor:
    """Ranks with fewer tokens fill up to max_tokens, so that shapes are static; expert E means none."""
    return pad(x, (0, 0, 0, padding), value=value) if padding else x
