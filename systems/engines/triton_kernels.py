"""The grouped matrix multiplication of engine=triton; imported only where Triton is installed."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from triton.testing import do_bench  # pyright: ignore[reportMissingImports]

LEAST_IDS = 256  # ids of experts that a tile looks through, so that layers of fewer experts share what is compiled
TUNING_MS = {"warmup": 5, "rep": 20}  # of each tile and shape


@triton.jit
def activated(acc_MO, up_MO, ACTIVATION: tl.constexpr):
    """What becomes of the sums, and of those of the gate's other half (systems.engines.activations)."""
    if ACTIVATION == "relu":
        acc_MO = tl.where(acc_MO < 0, 0.0, acc_MO)  # a maximum would hide NaN
    if ACTIVATION == "swiglu":
        acc_MO = acc_MO * tl.sigmoid(acc_MO) * up_MO
    if ACTIVATION == "geglu":
        acc_MO = acc_MO * tl.sigmoid(1.5957691216 * (acc_MO + 0.044715 * acc_MO * acc_MO * acc_MO)) * up_MO
    if ACTIVATION == "clamped_swiglu":
        acc_MO = tl.where(acc_MO > 7.0, 7.0, acc_MO)
        up_MO = tl.where(up_MO > 7.0, 7.0, tl.where(up_MO < -7.0, -7.0, up_MO))
        acc_MO = acc_MO * tl.sigmoid(1.702 * acc_MO) * (up_MO + 1.0)
    return acc_MO


@triton.jit(do_not_specialize=["num_experts", "rows_per_expert"])
def grouped_gemm(
    x,
    order_N,
    w_eOK,
    y,
    rows_e,
    weight_N,
    bias_eO,
    num_experts,
    O,  # noqa: E741
    K,
    rows_per_expert,
    GATHER: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    NUM_IDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One half of the FFN, y = x w^T + b, for places sorted by expert; all tensors contiguous.

    GATHER > 0: place i reads row order_N[i] // GATHER of x, and y stands at place i. GATHER = 0: place i reads row i of
    x, and y stands at row order_N[i], times weight_N[order_N[i]] where WEIGHTED. ACTIVATION: what y goes through, ""
    for none; of a gated one w has 2 O rows, first those of the gate.
    Grid: (column tiles, row tiles). Row tiles are numbered expert after expert, BLOCK_M places each, the last of an
    expert partly filled; those past the last expert return. NUM_IDS: a power of two, at least num_experts.
    rows_per_expert is only a key of the tuning.
    """
    tile = tl.program_id(1)
    ids = tl.arange(0, NUM_IDS)
    rows = tl.load(rows_e + ids, mask=ids < num_experts, other=0)
    tiles = tl.cdiv(rows, BLOCK_M)
    before = tl.cumsum(tiles, 0) <= tile
    expert = tl.sum(before.to(tl.int64), 0)
    if expert >= num_experts:
        return
    place_in_expert = (tile - tl.sum(tl.where(before, tiles, 0), 0)) * BLOCK_M
    first_place = tl.sum(tl.where(before, rows, 0), 0) + place_in_expert
    places_left = tl.load(rows_e + expert) - place_in_expert

    m, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    here = m < places_left
    place = first_place + m  # 64 bits: rows times columns can exceed 32
    row = tl.load(order_N + place, mask=here, other=0)
    source = row // GATHER if GATHER > 0 else place
    target = place if GATHER > 0 else row
    x_MK = x + source[:, None] * K + k[None, :]
    GATED: tl.constexpr = ACTIVATION != "" and ACTIVATION != "relu"
    HALVES: tl.constexpr = 2 if GATED else 1
    w_KO = w_eOK + expert * HALVES * O * K + o[None, :] * K + k[:, None]
    up_KO = w_eOK + (expert * HALVES + HALVES - 1) * O * K + o[None, :] * K + k[:, None]
    acc_MO = tl.zeros((BLOCK_M, BLOCK_O), tl.float32)
    up_MO = tl.zeros((BLOCK_M, BLOCK_O), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        x_tile = tl.load(x_MK + start, mask=here[:, None] & inside[None, :], other=0.0)
        w_tile = tl.load(w_KO + start, mask=(o < O)[None, :] & inside[:, None], other=0.0)
        acc_MO = tl.dot(x_tile, w_tile, acc_MO, input_precision=PRECISION)
        if GATED:
            w_tile = tl.load(up_KO + start, mask=(o < O)[None, :] & inside[:, None], other=0.0)
            up_MO = tl.dot(x_tile, w_tile, up_MO, input_precision=PRECISION)
    if BIASED:
        bias_O = bias_eO + expert * HALVES * O + o
        acc_MO += tl.load(bias_O, mask=o < O, other=0.0)[None, :]
        if GATED:
            up_MO += tl.load(bias_O + O, mask=o < O, other=0.0)[None, :]
    acc_MO = activated(acc_MO, up_MO, ACTIVATION)
    if WEIGHTED:
        acc_MO *= tl.load(weight_N + row, mask=here, other=0.0)[:, None]
    y_MO = y + target[:, None] * O + o[None, :]
    tl.store(y_MO, acc_MO.to(y.dtype.element_ty), mask=here[:, None] & (o < O)[None, :])


def tiles_for(rows_per_expert: int, itemsize: int) -> list[dict[str, Any]]:
    """Tile and launch sizes worth trying; a step over K is one or two cache lines of 128 bytes.

    Rows of a tile: those of a mean expert, twice and half as many, within what tensor cores and registers allow. Each
    was the best of some of 35 shapes on an H100 (LOG.md, 2026-11-27).
    """
    block_m = min(128, max(16, rows_per_expert))
    heights = sorted({max(16, block_m // 2), block_m, min(128, 2 * block_m)})
    return [
        {
            "kwargs": {"BLOCK_M": height, "BLOCK_O": width, "BLOCK_K": lines * 128 // itemsize},
            "num_warps": 8 if height * width >= 128 * 128 else 4,
            "num_stages": stages,
        }
        for height in heights
        for width, lines, stages in ((64, 1, 4), (128, 1, 3), (256, 1, 3), (128, 2, 3))
    ]


@cache
def launcher(rows_per_expert: int, itemsize: int) -> Any:
    """`grouped_gemm` with tiles tuned on first use for each shape; the interpreter, which times nothing, takes one."""
    tiles = tiles_for(rows_per_expert, itemsize)
    if os.environ.get("TRITON_INTERPRET") == "1":
        tiles = [tile for tile in tiles if tile["kwargs"]["BLOCK_M"] == min(128, max(16, rows_per_expert))][:1]
    key = ["num_experts", "O", "K", "rows_per_expert", "GATHER", "ACTIVATION", "PRECISION"]
    tuned = triton.autotune(
        [triton.Config(**tile) for tile in tiles],
        key=key,
        prune_configs_by={"early_config_prune": compiled},
        do_bench=partial(do_bench, **TUNING_MS),
        cache_results=len(tiles) > 1,
    )
    return tuned(grouped_gemm)


def compiled(configs: list[Any], arguments: Mapping[str, Any], **launch: Any) -> list[Any]:
    """The same configs, compiled side by side before they are timed: one by one they take half a minute a shape."""
    constants = {name: value for name, value in launch.items() if name.isupper()}
    with ThreadPoolExecutor() as threads, triton.AsyncCompileMode(threads, ignore_errors=True):
        for config in configs:
            grouped_gemm.warmup(*arguments.values(), grid=(1,), **constants, **config.all_kwargs())
    return configs
