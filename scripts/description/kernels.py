"""Which share of the dense rate the kernels for experts reach here: fitted to their times at even and skewed rows.

Letters in names: E experts, N rows, D d_model, F hidden width.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import torch

from devices import Device
from experiments.configuration import set_precision
from scripts.description.measure import Machine
from systems.engines import Copies, find_engine
from systems.engines.base import DTYPES

ENGINES = {"cpu": {"cpu": "cpu"}, "cuda": {"triton": "triton", "block_sparse": "megablocks", "grouped": "grouped"}}
TILES = {
    "cpu": {1: 1.0},
    "triton": {16: 0.5, 32: 0.7, 64: 0.85, 128: 1.0},
    "block_sparse": {128: 1.0},
    "grouped": {64: 0.85, 128: 1.0},
}
# torch's grouped product is one kernel in bf16 on Hopper and later only; elsewhere it multiplies expert after expert.
APART = {"cpu": {"grouped": {"precisions": []}}, "cuda": {}}
FUSED_IN = {"grouped": {"precisions": ["bf16"]}}
BATCHED_TILES = {"cpu": {1: 1.0}, "cuda": {16: 0.5, 32: 0.7, 64: 0.85, 128: 1.0}}
D_MODEL = {"cpu": 64, "cuda": 768}
WIDTHS = {"cpu": (64, 256), "cuda": (768, 3072)}  # of a shard among four ranks, and whole
EXPERTS, ROWS = {"cpu": (8, 64), "cuda": (8, 128)}, {"cpu": (64, 1024, 8192), "cuda": (2048, 32768)}
PACKED = ("cpu",)  # kernels that are held against the peak
SKEW = 0.6  # what the hottest tenth of the experts gets beyond its even share
SHARES, EXPERT_US = np.geomspace(0.2, 2.5, 60), (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
Timing = tuple[Callable[[Device], float], float]  # what a device says of a case, and what it took: microseconds
Build = Callable[
    [str, Mapping[str, Any]], Device
]  # the device whose kernel of this name has these options of `Grouped`


def rows_for(num_experts: int, num_rows: int, skew: float) -> np.ndarray:
    """rows_e; example: 4 experts, 8 rows, skew 0.5 -> [5, 1, 1, 1]."""
    hot = max(1, num_experts // 10)
    share_e = np.full(num_experts, (1 - skew) / num_experts)
    share_e[:hot] += skew / hot
    ends_e = np.floor(np.cumsum(share_e) * num_rows + 1e-6).astype(int)
    return np.diff(ends_e, prepend=0)


def time_engine(machine: Machine, kernel: str, precision: str, share: float) -> list[Timing]:
    """An engine's two products, at each size, number of experts and skew."""
    kind = machine.device.type
    d_model = D_MODEL[kind]
    timings: list[Timing] = []
    cases = list(product(product(WIDTHS[kind], EXPERTS[kind], ROWS[kind]), (0.0, SKEW)))
    for (width, count, total), skew in cases:
        rows_e = rows_for(count, total, skew)
        us = machine.us(*engine_call(machine, kernel, precision, rows_e, d_model, width), share / len(cases))

        def predict(device: Device, rows_e: np.ndarray = rows_e, width: int = width) -> float:
            up_s = device.grouped_s(kernel, rows_e, width, d_model, precision)
            return 1e6 * (up_s + device.grouped_s(kernel, rows_e, d_model, width, precision))

        timings.append((predict, us))
    return timings


def engine_call(
    machine: Machine, kernel: str, precision: str, rows_e: np.ndarray, d_model: int, width: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The engine on rows that stand in order, and its operands; ValueError where it cannot run."""
    engine = find_engine(ENGINES[machine.device.type][kernel])
    engine.check(machine.device, DTYPES[precision], (d_model, width))
    num_rows, num_experts = int(rows_e.sum()), len(rows_e)
    weights = engine.prepare(
        machine.rand(num_experts, d_model, width, precision=precision),
        machine.rand(num_experts, width, d_model, precision=precision),
    )
    order_N = torch.arange(num_rows, device=machine.device)
    copies = Copies(order_N, torch.tensor(rows_e, device=machine.device))
    x_ND = machine.rand(num_rows, d_model, precision=precision)
    return lambda x_ND, *weights: engine(x_ND, copies, *weights), (x_ND, *weights)


def time_batched(machine: Machine, precision: str, share: float) -> list[Timing]:
    """torch.bmm of many small products."""
    kind = machine.device.type
    d_model, width = D_MODEL[kind], WIDTHS[kind][-1]
    timings: list[Timing] = []
    for batch, m in product(EXPERTS[kind], (8, 64, 512)):
        x, w = (
            machine.rand(batch, m, d_model, precision=precision),
            machine.rand(batch, d_model, width, precision=precision),
        )
        us = machine.us(torch.bmm, (x, w), share / 6)

        def predict(device: Device, batch: int = batch, m: int = m) -> float:
            return 1e6 * device.matmul_s(batch, m, width, d_model, precision)

        timings.append((predict, us))
    return timings


def fitted(
    timings: list[Timing], kernel: str, tiles: Mapping[int, float], build: Build
) -> tuple[dict[str, Any], float]:
    """The options with the least mean error, as a factor, and that error."""

    def error(options: Mapping[str, Any]) -> float:
        device = build(kernel, options)
        return float(np.mean([abs(np.log(predict(device) / us)) for predict, us in timings]))

    costs = (0.0,) if kernel == "batched" else EXPERT_US
    shares = [round(float(share), 3) for share in SHARES]
    fixed = {"tiles": dict(tiles)} | ({"of_peak": True} if kernel in PACKED else {})
    best = min((fixed | {"share": share, "expert_us": us} for share in shares for us in costs), key=error)
    return best, float(np.expm1(error(best)))


def measure_kernels(
    machine: Machine, precision: str, build: Build, share: float
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(kernel, its options of `Grouped`, what is to be said of the fit) for each that can run here, batched last."""
    set_precision(precision)
    kind = machine.device.type
    for kernel in ENGINES[kind]:
        print(f"describe_device: kernels of {kernel}", flush=True)
        try:
            timings = time_engine(machine, kernel, precision, share / 4)
        except ValueError as refusal:
            print(f"describe_device: no {kernel} kernel: {refusal}")
            continue
        options, error = fitted(timings, kernel, TILES[kernel], build)
        options |= FUSED_IN.get(kernel, {})
        yield kernel, options, f"mean error {error:.1%} of {len(timings)} layers in {precision}"
    options, error = fitted(time_batched(machine, precision, share / 4), "batched", BATCHED_TILES[kind], build)
    yield "batched", options, f"mean error {error:.1%} of batched products in {precision}"
