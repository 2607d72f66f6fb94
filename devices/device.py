"""A device that is described instead of owned; docs/devices.md says where its numbers come from.

Units: seconds of a question's answer, microseconds and bytes in tables, TFLOP/s (1e12) of peaks.
Letters in names: e experts.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from clusters.network import HierarchicalNetwork, Network, NetworkModel
from devices.grids import Curve, Grid
from devices.parts import ITEMSIZE, Grouped, Host, how_to_describe

TABLES = Path(__file__).with_name("tables")
RANKS_PER_NODE = 8
# A precision that no table has costs what another does; docs/devices.md says why.
SAME_RATE = {"fp16": "bf16"}
# Of the writing of a large bf16 product, what its multiplying does not hide (A100, H100: 0.2 to 0.8).
OUTPUT_EXPOSED = 0.5
TF32_ROWS, TF32_COLUMNS, TF32_DEPTH = (16, 128), 128, 768  # of a tile
LARGE = 8192  # side of a product that reaches the rate of large ones
FP32_SHARE = 0.93  # of the peak that a large fp32 product reaches without tensor cores
FP32_TILES = {128: 1.0, 64: 0.85, 32: 0.6}  # side of a tile -> share of a large tile's rate
# Attention against bf16: tf32 moves twice the bytes at half the rate, fp32 multiplies in three tf32 parts.
ATTENTION_COST = {"tf32": 2.0, "fp32": 6.0, "fp8": 1.0}


class Device:
    """How long kernels, copies and collectives take on one described device.

    name, title: in configurations and in reports. kind: cuda or cpu. memory_bytes: that it has. precisions: those it
    multiplies in. peak_tflops: by precision, of the data sheet or measured. multiprocessors: that share a product's
    tiles. host: what issuing costs. grouped: options of `Grouped` for each kernel; `batched` is a batched product.
    lone_share: of a large tf32 product's rate, what one of its tiles reaches by itself. scan_row_us: each row of a
    cumulative sum down the columns of a matrix, which one thread a column adds up.
    tables: name of devices/tables/NAME.json, what was measured. within_node: the network where those have no
    collectives. between_nodes: the link of one adapter per device. source: where all that comes from.
    """

    def __init__(
        self,
        name: str,
        title: str,
        kind: str,
        memory_bytes: float,
        host: Host,
        tables: str,
        precisions: Sequence[str],
        peak_tflops: Mapping[str, float],
        grouped: Mapping[str, Mapping[str, Any]],
        source: str,
        multiprocessors: int = 1,
        lone_share: float = 1.0,
        scan_row_us: float = 0.0,
        within_node: NetworkModel | None = None,
        between_nodes: Network | None = None,
    ) -> None:
        self.name, self.title, self.kind, self.source = name, title, kind, source
        self.memory_bytes, self.host, self.precisions = float(memory_bytes), host, tuple(precisions)
        self.peak_tflops, self.multiprocessors = dict(peak_tflops), multiprocessors
        self.grouped = {kernel: Grouped(**options) for kernel, options in grouped.items()}
        self._lone_share, self._between_nodes, self._scan_row_us = lone_share, between_nodes, scan_row_us
        measured = self._read(tables)
        self.about: dict[str, Any] = measured.pop("about")
        self._within_node = within_node or Network(name, tables=measured.get("network", {}), source=source)
        self._any_ranks = within_node is not None and not getattr(within_node, "tables", None)
        self.identity = self._identify(measured)
        self._grids = {precision: Grid(table) for precision, table in measured["matmul"].items()}
        self._memory, self._transfer = Curve(measured["memory"]), Curve(measured["transfer"])
        self._attention = {
            precision: {int(width): Curve(points) for width, points in by_width.items()}
            for precision, by_width in measured["attention"].items()
        }
        self._known: dict[tuple[Any, ...], float] = {}

    def with_kernel(self, kernel: str, options: Mapping[str, Any]) -> "Device":
        """This device, but for one kernel's options of `Grouped`; to try many of them its tables are read once."""
        other = copy(self)
        other.grouped = self.grouped | {kernel: Grouped(**options)}
        other._known = {what: seconds for what, seconds in self._known.items() if what[0] != "batched"}
        return other

    def matmul_s(self, batch: int, m: int, n: int, k: int, precision: str) -> float:
        """One dense product [m, k] @ [k, n], or `batch` of them in one kernel."""
        if batch != 1:
            return self._once(("batched", batch, m, n, k, precision), self._batched_s, batch, m, n, k, precision)
        return self._once((m, n, k, precision), self._product_s, m, n, k, precision)

    def grouped_s(self, kernel: str, rows_e: Sequence[int] | np.ndarray, n: int, k: int, precision: str) -> float:
        """A product [rows_e[e], k] @ [k, n] for each expert e; weights are read once by an expert that has rows."""
        spec = self._grouped(kernel)
        rows_e = np.asarray(rows_e)
        rows_e = rows_e[rows_e > 0]
        if not len(rows_e):
            return self.memory_s(0)
        if precision not in spec.precisions:
            apart_s = sum(self.matmul_s(1, rows, n, k, precision) for rows in rows_e.tolist())
            return max(apart_s, self.matmul_s(1, int(rows_e.sum()), n, k, precision))
        filled = {tile: int((-(-rows_e // tile)).sum()) * tile for tile in spec.tiles}
        moved = len(rows_e) * n * k + int(rows_e.sum()) * (n + k)
        return 1e-6 * spec.expert_us * len(rows_e) + self._tiled_s(spec, filled, moved, n, k, precision)

    def is_one_kernel(self, kernel: str, precision: str) -> bool:
        """Whether a grouped product of this precision is one kernel and not a product for each expert."""
        return precision in self._grouped(kernel).precisions

    def attention_s(self, batch: int, heads: int, query: int, key: int, head_dim: int, precision: str) -> float:
        """Fused attention: no scores in memory."""
        what = ("attention", batch, heads, query, key, head_dim, precision)
        return self._once(what, self._fused_s, batch * heads * query, key, head_dim, precision)

    def memory_s(self, num_bytes: float) -> float:
        """An elementwise, gather or copy kernel that reads and writes num_bytes in all."""
        return 1e-6 * self._memory.at(num_bytes)

    def scan_s(self, num_rows: int) -> float:
        """A cumulative sum down the columns of a matrix, beyond its kernel and what it moves."""
        return 1e-6 * self._scan_row_us * num_rows

    def transfer_s(self, num_bytes: float) -> float:
        """A copy between host and device."""
        return 1e-6 * self._transfer.at(num_bytes)

    def network(self, world_size: int) -> NetworkModel:
        """The network of so many ranks; ValueError, in one sentence, where nothing was measured for them."""
        if self._any_ranks or world_size == 1 or world_size in self._counts():
            return self._within_node
        if not self._nodes_of(world_size):
            if not self._counts():
                raise ValueError(f"device {self.name} has no collectives: choose a network=, such as nvlink3")
            known = ", ".join(map(str, self._counts()))
            nodes = f" and multiples of {RANKS_PER_NODE}" if self._nodes_of(2 * RANKS_PER_NODE) else ""
            raise ValueError(f"device {self.name} has collectives of {known} ranks{nodes}, not of {world_size}")
        within, between = self._within_node, self._between_nodes
        assert isinstance(within, Network) and between
        return HierarchicalNetwork(f"{self.name}_nodes", RANKS_PER_NODE, within, between, self.source)

    def check(self, precision: str, world_size: int | None = None) -> None:
        """Raise ValueError, in one sentence, for a precision or a number of ranks that the device lacks.

        world_size: None where the collectives are another network's.
        """
        if precision not in self.precisions:
            raise ValueError(f"device {self.name} multiplies in {', '.join(self.precisions)}, not in {precision}")
        if world_size is not None:
            self.network(world_size)

    def _read(self, tables: str) -> dict[str, Any]:
        path = TABLES / f"{tables}.json"
        if not path.exists():
            raise ValueError(f"device {self.name} has no table {path}; {how_to_describe(self.name)}")
        return json.loads(path.read_text())

    def _identify(self, measured: Mapping[str, Any]) -> str:
        """Hash of everything that decides a number."""
        networks = [repr(network) for network in (self._within_node, self._between_nodes)]
        grouped = {kernel: asdict(spec) for kernel, spec in self.grouped.items()}
        rates = [self.precisions, self.peak_tflops, self.multiprocessors, self._lone_share, self._scan_row_us, grouped]
        text = json.dumps([self.kind, self.memory_bytes, asdict(self.host), rates, networks, measured], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _once(self, what: tuple[Any, ...], answer: Callable[..., float], *arguments: Any) -> float:
        found = self._known.get(what)
        if found is None:
            found = self._known[what] = answer(*arguments)
        return found

    def _product_s(self, m: int, n: int, k: int, precision: str) -> float:
        """From the table of the precision, or by the rule that stands in for one."""
        precision = precision if precision in self._grids else SAME_RATE.get(precision, precision)
        if precision in self._grids:
            return self._grids[precision].seconds(m, n, k)
        if precision == "tf32" and "bf16" in self._grids:
            return max(self._bf16_s(m, n, k), self._lone_tile_s(m, n, k))
        if precision == "fp32" and "fp32" in self.precisions:
            return self.memory_s(0) + max(self._fp32_s(m, n, k), self._stream_s(4 * (m * n + k * (m + n))))
        raise ValueError(f"device {self.name} multiplies in {', '.join(self.precisions)}, not in {precision}")

    def _bf16_s(self, m: int, n: int, k: int) -> float:
        """A tf32 product as a bf16 product of twice the depth: as many bytes read, as long in the tensor cores."""
        return self._grids["bf16"].seconds(m, n, 2 * k) + OUTPUT_EXPOSED * self._stream_s(2 * m * n)

    def _lone_tile_s(self, m: int, n: int, k: int) -> float:
        """What no tf32 product is faster than: one of its tiles by itself.

        Depth beyond TF32_DEPTH, the largest that the constant was fitted to, is taken to be split among tiles.
        """
        rows = next((rows for rows in TF32_ROWS if m <= rows), TF32_ROWS[-1])
        rate = 2 * LARGE**3 / self._bf16_s(LARGE, LARGE, LARGE) / self.multiprocessors
        return self.memory_s(0) + 2 * rows * TF32_COLUMNS * min(k, TF32_DEPTH) / (rate * self._lone_share)

    def _stream_s(self, num_bytes: float) -> float:
        """Of bytes alone, without the fixed time of a kernel."""
        return self.memory_s(num_bytes) - self.memory_s(0)

    def _fp32_s(self, m: int, n: int, k: int) -> float:
        """FLOPs of the tiles that the multiprocessors work off in waves, with the best of the tiles."""
        rate = 1e12 * self.peak_tflops["fp32"] * FP32_SHARE / self.multiprocessors
        return min(
            ceil(ceil(m / side) * ceil(n / side) / self.multiprocessors) * 2 * side**2 * k / (rate * share)
            for side, share in FP32_TILES.items()
        )

    def _batched_s(self, batch: int, m: int, n: int, k: int, precision: str) -> float:
        spec = self.grouped.get("batched", Grouped())
        filled = {tile: batch * ceil(m / tile) * tile for tile in spec.tiles}
        return self._tiled_s(spec, filled, batch * (m * n + k * (m + n)), n, k, precision)

    def _tiled_s(self, spec: Grouped, filled: Mapping[int, int], moved: float, n: int, k: int, precision: str) -> float:
        """The dense product of all filled rows at the kernel's rate, with its best tile, or what moves if longer."""

        def dense_s(rows: int) -> float:
            if spec.of_peak:
                return 2e-12 * rows * n * k / self.peak_tflops[precision]
            return self.matmul_s(1, rows, n, k, precision)

        multiplied_s = min(dense_s(rows) / (spec.share * spec.tiles[tile]) for tile, rows in filled.items())
        return max(multiplied_s, self.memory_s(ITEMSIZE[precision] * moved))

    def _grouped(self, kernel: str) -> Grouped:
        if kernel not in self.grouped:
            known = ", ".join(name for name in self.grouped if name != "batched")
            raise ValueError(f"device {self.name} has the grouped kernels {known}, not {kernel}")
        return self.grouped[kernel]

    def _fused_s(self, rows: int, key: int, head_dim: int, precision: str) -> float:
        """Tables hold microseconds of a million numbers of the query (batch x heads x query x head_dim)."""
        cost = 1.0
        if (same := SAME_RATE.get(precision, precision)) in self._attention:
            by_width = self._attention[same]
        else:
            by_width, cost = self._attention["bf16"], ATTENTION_COST[precision]
        nearest = min(by_width, key=lambda width: max(width / head_dim, head_dim / width))
        return self.memory_s(0) + 1e-12 * cost * by_width[nearest].at(key) * rows * head_dim

    def _counts(self) -> list[int]:
        return sorted(getattr(self._within_node, "tables", {}).get("all_reduce", {}))

    def _nodes_of(self, world_size: int) -> bool:
        """Whether the ranks fill whole nodes that a described link joins."""
        whole = world_size > RANKS_PER_NODE and world_size % RANKS_PER_NODE == 0
        return whole and self._between_nodes is not None and RANKS_PER_NODE in self._counts()
