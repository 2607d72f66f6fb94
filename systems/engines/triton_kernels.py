"""The grouped matrix multiplication of engine=triton; imported only where Triton is installed."""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def grouped_gemm(
    x_RK,
    w_eNK,
    y_RN,
    rows_e,
    num_experts,
    N,
    K,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    NUM_IDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = x w^T for rows sorted by expert, through ReLU if RELU; all tensors contiguous.

    Grid: (column tiles, row tiles). Row tiles are numbered expert after expert, BLOCK_M rows each, the last of an
    expert partly filled; those past the last expert return. NUM_IDS: num_experts rounded up to a power of two.
    """
    tile = tl.program_id(1)
    ids = tl.arange(0, NUM_IDS)
    rows = tl.load(rows_e + ids, mask=ids < num_experts, other=0)
    tiles = tl.cdiv(rows, BLOCK_M)
    before = tl.cumsum(tiles, 0) <= tile
    expert = tl.sum(before.to(tl.int64), 0)
    if expert >= num_experts:
        return
    row_in_expert = (tile - tl.sum(tl.where(before, tiles, 0), 0)) * BLOCK_M
    first_row = tl.sum(tl.where(before, rows, 0), 0) + row_in_expert
    rows_left = tl.load(rows_e + expert) - row_in_expert

    # 64 bits up to the tile's corner, 32 inside it.
    x_RK += first_row * K
    y_RN += first_row * N
    w_eNK += expert * N * K
    m, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_MK = x_RK + m[:, None] * K + k[None, :]
    w_KN = w_eNK + n[None, :] * K + k[:, None]
    acc_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        x = tl.load(x_MK + start, mask=(m < rows_left)[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_KN + start, mask=(n < N)[None, :] & inside[:, None], other=0.0)
        acc_MN = tl.dot(x, w, acc_MN, input_precision=PRECISION)
    if RELU:
        acc_MN = tl.where(acc_MN < 0, 0.0, acc_MN)  # a maximum would hide NaN
    y_MN = y_RN + m[:, None] * N + n[None, :]
    tl.store(y_MN, acc_MN.to(y_RN.dtype.element_ty), mask=(m < rows_left)[:, None] & (n < N)[None, :])
