"""MegaBlocks (arXiv:2211.15841): the experts' hidden layer as one block-sparse matrix."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from systems.engines.base import SortedEngine

BLOCK = 128  # rows and columns of a block in stk's kernels


class MegaBlocksEngine(SortedEngine):
    """stanford-stk's block-sparse kernels, the ones of MegaBlocks; each expert's rows are copied to fill whole blocks.

    The host reads the number of blocks once per call, as MegaBlocks does. fp32 is multiplied in TF32.
    Letters: P rows once padded, H = e*F.
    """

    name = "megablocks"

    def check(self, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> None:
        """ValueError but on CUDA with stk and Triton, for widths in whole blocks and a precision of tensor cores."""
        if device.type != "cuda":
            raise ValueError(
                f"engine=megablocks runs block-sparse CUDA kernels and this rank is on {device.type}; "
                "use engine=grouped or engine=loop"
            )
        if find_spec("stk") is None or find_spec("triton") is None:
            raise ValueError("engine=megablocks needs stk and Triton: pip install stanford-stk==0.7.1 triton")
        for width in widths:
            if width % BLOCK:
                raise ValueError(f"engine=megablocks needs matrix widths that are multiples of {BLOCK}, got {width}")
        if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
            raise ValueError(
                "engine=megablocks multiplies fp32 in TF32 and precision is fp32; "
                "use precision=tf32, bf16 or fp16, or another engine"
            )

    def prepare(self, wi_eDI: torch.Tensor, wo_eFD: torch.Tensor, *biases: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(wi_eFD, wo_eFD), or (gate_eFD, wo_eFD, up_eFD): the experts' hidden units one after another.

        Raises ValueError for biases, which the kernels have none of.
        """
        if biases:
            raise ValueError("engine=megablocks has no biases and this model's experts have; use engine=triton")
        first, *second = wi_eDI.chunk(2 if self.activation.gated else 1, 2)
        columns = [part.transpose(1, 2).contiguous() for part in (first, *second)]
        return columns[0], wo_eFD.contiguous(), *columns[1:]

    def ffn(self, x_ND: torch.Tensor, rows_e: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        """Rows padded to whole blocks; a sampled product into a block-sparse matrix, then a product with it.

        Raises ValueError where a matrix has 2**31 elements or more, which stk's kernels do not index.
        """
        expert_B, row_P, place_R = padded_places(rows_e, len(x_ND))
        if not len(row_P):
            return torch.empty_like(x_ND)
        width = weights[0].shape[1]
        wi, wo, *up = (weight.flatten(0, 1) for weight in weights)
        largest = max(wi.numel(), len(row_P) * max(width, x_ND.shape[1]))
        if largest >= 2**31:
            raise ValueError(
                f"engine=megablocks needs matrices of less than 2**31 elements, got {largest}; use engine=triton"
            )
        rows, columns, offsets = block_topology(expert_B, width // BLOCK)

        topology = rows, columns, offsets
        x_PD = x_ND[row_P]
        products = [torch.ops.moe.sdd(x_PD, w_HD, *topology, rows_e) for w_HD in (wi, *up)]
        hidden = self.activation.function(torch.cat(products, -1) if up else products[0])
        # dsd loads columns in its main loop, where Triton would spend pipeline stages on anything wider than 16 bits.
        return torch.ops.moe.dsd(hidden, wo, rows, columns.short(), offsets, rows_e)[place_R]


def _sparse(blocks: torch.Tensor, num_rows: int, num_columns: int, *topology: torch.Tensor) -> Any:
    import stk

    rows, columns, offsets = topology
    # The last three are the transposed topology, which only gradients need.
    return stk.Matrix((num_rows, num_columns), blocks, rows, columns, offsets, columns, offsets, offsets)


def _sdd(x_PD, wi_HD, rows, columns, offsets, rows_e) -> torch.Tensor:
    """Blocks [B, 128, 128] of x W_i^T where the topology has them."""
    import stk

    no_blocks = x_PD.new_empty(1).expand(len(rows), BLOCK, BLOCK)  # sdd reads their shape only
    ops: Any = stk.ops  # pyright: ignore[reportAttributeAccessIssue]
    return ops.sdd(x_PD, wi_HD.t(), _sparse(no_blocks, len(x_PD), len(wi_HD), rows, columns, offsets)).data


def _dsd(hidden, wo_HD, rows, columns, offsets, rows_e) -> torch.Tensor:
    """The product of the blocks with W_o, [P, D]."""
    import stk

    ops: Any = stk.ops  # pyright: ignore[reportAttributeAccessIssue]
    num_rows = (len(offsets) - 1) * BLOCK
    return ops.dsd(_sparse(hidden, num_rows, len(wo_HD), rows, columns, offsets), wo_HD)


# Operations of torch's, so that ranks without a GPU can say how large their results are and how long they take.
OPERATIONS = torch.library.Library("moe", "FRAGMENT")
for name, kernel, shape in (
    ("sdd", _sdd, lambda x, w, rows, *_: x.new_empty(len(rows), BLOCK, BLOCK)),
    ("dsd", _dsd, lambda x, w, rows, columns, offsets, _: x.new_empty((len(offsets) - 1) * BLOCK, w.shape[1])),
):
    OPERATIONS.define(
        f"{name}(Tensor x, Tensor w, Tensor rows, Tensor columns, Tensor offsets, Tensor rows_e) -> Tensor"
    )
    OPERATIONS.impl(name, kernel, "CompositeExplicitAutograd")
    OPERATIONS.impl(name, shape, "Meta")


def padded_places(
    rows_e: torch.Tensor, num_rows: int, block: int = BLOCK
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where rows sorted by expert go when each expert's rows are padded to whole blocks.

    Returns (expert_B, row_P, place_R): the expert of each block, the row copied to each padded place (any row, where
    it is padding) and the place of each row (any place, for rows past sum(rows_e)). One host synchronisation.
    Example: [3, 0, 1], 4 rows, block 2 -> [0, 0, 2], [0, 1, 2, any, 3, any], [0, 1, 2, 4].
    """
    blocks_e = (rows_e + block - 1) // block
    experts_e = torch.arange(len(rows_e), device=rows_e.device)
    expert_B = experts_e.repeat_interleave(blocks_e)
    ends_e = rows_e.cumsum(0)
    shift_e = block * (blocks_e.cumsum(0) - blocks_e) - (ends_e - rows_e)
    places_P = torch.arange(block * len(expert_B), device=rows_e.device)
    row_P = places_P - shift_e[expert_B].repeat_interleave(block)
    rows_R = torch.arange(num_rows, device=rows_e.device)
    expert_R = torch.searchsorted(ends_e, rows_R, right=True).clamp(max=len(rows_e) - 1)
    place_R = rows_R + shift_e[expert_R]
    return expert_B, row_P.clamp(max=num_rows - 1), place_R.clamp(max=len(places_P) - 1)


def block_topology(expert_B: torch.Tensor, blocks_per_row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows, columns, offsets) of the nonzero blocks in row order: a block row holds its expert's columns.

    In int32, because stk's sdd multiplies indices in their own type, and MegaBlocks' int16 overflows from 256 block
    rows or columns on with Triton 3.2 and later (stanford-futuredata/stk#17).
    Example: [0, 2], 2 per row -> [0, 0, 1, 1], [0, 1, 4, 5], [0, 2, 4].
    """
    in_row = torch.arange(blocks_per_row, device=expert_B.device)
    columns = (expert_B[:, None] * blocks_per_row + in_row).flatten()
    rows = torch.arange(len(expert_B), device=expert_B.device).repeat_interleave(blocks_per_row)
    offsets = torch.arange(len(expert_B) + 1, device=expert_B.device) * blocks_per_row
    return rows.int(), columns.int(), offsets.int()
