"""Extract what a described GPU needs from the measured tables of aiconfigurator-core (Apache-2.0, NVIDIA).

    pip install -e .[devices]
    python -m scripts.extract_device a100_sxm            # writes devices/tables/a100_sxm.json
    python -m scripts.extract_device a100_sxm --package path/to/aiconfigurator_core

A dense product keeps a grid of some 4,000 of up to 36,000 measured sizes; the error of the whole is printed and stands
in the file. Letters in names: m rows, n columns, k depth of a product; E experts, F hidden width, D d_model.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from devices.device import TABLES
from devices.grids import Curve, Grid
from scripts.description.tables import ascending, ascending_grid, document

Rows = Any  # a table of pandas, whose stubs know neither its columns nor their types
VERSION = "aiconfigurator-core 0.12.0"
KERNEL_US = 3.0  # its mem_empirical_constant_latency: what a kernel takes that moves next to nothing
TRANSFER_US, TRANSFER_SHARE = 10.0, 0.8  # of a copy over PCIe: latency, and share of the link's rate for pinned memory
PRECISIONS = {"bfloat16": "bf16", "fp8": "fp8"}
ROWS = [1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 16384, 32768]
WIDTHS = [32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 16384, 65536]
COLLECTIVES = {
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "all_reduce": "all_reduce",
}


@dataclass(frozen=True)
class Chosen:
    """The tables of one device, FRAMEWORK/VERSION; docs/devices.md says why these."""

    gemm: str
    attention: str
    nccl: str
    moe: Mapping[str, str]  # by the kernel whose share of the dense rate it shows


MOE = {"triton": "sglang/0.5.14", "grouped": "trtllm/1.3.0rc20"}
KERNELS = {"triton": "sglang_fused_moe_triton", "grouped": "moe_torch_flow_cutlass"}  # their names in the tables
DEVICES = {
    "a100_sxm": Chosen("trtllm/1.0.0", "sglang/0.5.10", "2.27.3", {"triton": "sglang/0.5.10"}),
    "h100_sxm": Chosen("trtllm/1.3.0rc20", "sglang/0.5.14", "2.29.2", MOE),
    "h200_sxm": Chosen("trtllm/1.3.0rc20", "sglang/0.5.14", "2.29.2", MOE),
    "b200_sxm": Chosen("trtllm/1.3.0rc20", "sglang/0.5.14", "2.29.2", MOE),
    "l40s": Chosen("trtllm/1.3.0rc20", "vllm/0.24.0", "2.27.3", MOE),
}


def matmul_tables(gemm: Rows) -> dict[str, dict[str, Any]]:
    """A grid {m, n, k, us} for each precision, with its relative error on all rows that were measured."""
    found = {}
    for dtype, precision in PRECISIONS.items():
        rows = gemm[gemm["gemm_dtype"] == dtype]
        if len(rows):
            found[precision] = grid_of(rows.groupby(["m", "n", "k"])["latency"].median() * 1e3)
    return found


def grid_of(us: Rows) -> dict[str, Any]:
    """The grid of the sizes that are among ROWS and WIDTHS; few are missing, and come from their neighbours in k."""
    axes = [sorted(us.index.unique(level).intersection(sizes)) for level, sizes in enumerate((ROWS, WIDTHS, WIDTHS))]
    log_us = np.log(us.reindex(pd.MultiIndex.from_product(axes)).to_numpy(float)).reshape([len(axis) for axis in axes])
    for axis in (2, 1, 0):
        log_us = np.apply_along_axis(_filled, axis, log_us)
    times = np.exp(ascending_grid(log_us)).round(2)
    return dict(zip("mnk", axes, strict=True)) | {"us": times.tolist()}


def _filled(values: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(~np.isnan(values))
    return np.interp(np.arange(len(values)), known, values[known]) if len(known) else values


def bandwidth_of(gemm: Rows) -> float:
    """Bytes/s that a tenth of the products with few rows and weights far beyond any cache exceed."""
    rows = gemm[(gemm["gemm_dtype"] == "bfloat16") & (gemm["m"] <= 16) & (gemm["n"] * gemm["k"] > 2e8)]
    moved = 2 * (rows["n"] * rows["k"] + rows["m"] * (rows["n"] + rows["k"]))
    return float((moved / rows["latency"] * 1e3).quantile(0.9))


def network_tables(nccl: Rows) -> dict[str, dict[str, list[list[float]]]]:
    """{collective: {ranks: [[V bytes, us], ...]}} of 16-bit messages; `message_size` counts elements of the whole.

    Broadcast, which nobody measured, is a ring that brings each rank V bytes, as the all-gather is.
    """
    rows = nccl[nccl["nccl_dtype"] == "half"]
    found: dict[str, dict[str, list[list[float]]]] = {}
    for (name, ranks), times in rows.groupby(["op_name", "num_gpus"]):
        median_us = times.groupby("message_size")["latency"].median() * 1e3
        factor = (2 if name == "all_reduce" else 1) * (ranks - 1) / ranks
        points = [[2 * size * factor, us] for size, us in median_us.items()]
        found.setdefault(COLLECTIVES[str(name)], {})[str(ranks)] = ascending(points)
    return found | {"broadcast": found["all_gather"]}


def attention_table(attention: Rows) -> dict[str, dict[str, list[list[float]]]]:
    """{bf16: {head_dim: [[keys, microseconds of a million numbers of the query], ...]}}, of large batches.

    Measured with a causal mask, whose work is L (L + 128) / 2 in tiles of 128; without it there is L^2.
    """
    rows = attention[(attention["attn_dtype"] == "bfloat16") & (attention["kv_cache_dtype"] == "bfloat16")]
    rows = rows[(rows["num_key_value_heads"] == rows["num_heads"]) & rows["head_dim"].isin([64, 128])]
    rows = rows[(rows["step"] == 0) & ~rows["kernel_source"].str.contains("triton") & (rows["isl"] > 1)]
    queries = rows["batch_size"] * rows["num_heads"] * rows["isl"]
    rows = rows.assign(queries=queries)[queries >= 1 << 18]
    whole = np.maximum(1, 2 * rows["isl"] / (rows["isl"] + 128))
    times = rows.assign(us=rows["latency"] * 1e9 * whole / (rows["queries"] * rows["head_dim"]))
    return {
        "bf16": {
            str(width): ascending([[keys, us] for keys, us in found.groupby("isl")["us"].median().items()], digits=3)
            for width, found in times.groupby("head_dim")
        }
    }


def share_of(kernel: str, moe: Rows, grid: Grid, memory: Curve) -> float:
    """What a grouped kernel reaches of the dense rate, where it is tuned: exceeded by a tenth of the measured layers.

    Layers of 256 balanced rows an expert and more, whose gate and up projection are one product; activation and sum
    over choices are taken off as passes over memory. Three quarters of the Triton rows have no tuned tiles and half of
    that rate.
    """
    rows = moe[(moe["moe_dtype"] == "bfloat16") & (moe["distribution"] == "balanced") & (moe["moe_ep_size"] == 1)]
    rows = rows[rows["kernel_source"] == KERNELS[kernel]].assign(width=rows["inter_size"] // rows["moe_tp_size"])
    copies = rows["num_tokens"] * rows["topk"]
    shares = []
    for row in rows[(copies >= 256 * rows["num_experts"]) & (rows["width"] >= 256)].itertuples():
        tokens, copies, d_model, width = row.num_tokens, row.num_tokens * row.topk, row.hidden_size, row.width
        passes_us = memory.at(6 * copies * width) + memory.at(2 * (copies + tokens) * d_model)
        dense_s = grid.seconds(copies, 2 * width, d_model) + grid.seconds(copies, d_model, width)
        shares.append(1e3 * dense_s / (row.latency - 1e-3 * passes_us))
    return round(float(np.quantile(shares, 0.9)), 2)


def extract(name: str, package: Path) -> dict[str, Any]:
    """The tables of a device and what is to be said about them, the error of the reduction included."""
    chosen, systems = DEVICES[name], package / "systems"
    spec = yaml.safe_load((systems / f"{name}.yaml").read_text())
    paths = {
        "gemm": f"gemm/{chosen.gemm}/gemm_perf.parquet",
        "attention": f"attention/{chosen.attention}/context_attention_perf.parquet",
        "nccl": f"comm/nccl/{chosen.nccl}/nccl_perf.parquet",
    }
    data = {kind: pd.read_parquet(systems / spec["data_dir"] / path) for kind, path in paths.items()}
    gemm, transfer = data["gemm"], spec["node"]["pcie_bw"] * TRANSFER_SHARE
    tables = {
        "memory": [[0, KERNEL_US], [10**9, round(KERNEL_US + 1e15 / bandwidth_of(gemm), 1)]],
        "transfer": [[0, TRANSFER_US], [10**9, round(TRANSFER_US + 1e15 / transfer, 1)]],
        "attention": attention_table(data["attention"]),
        "network": network_tables(data["nccl"]),
        "matmul": matmul_tables(gemm),
    }
    moe = {
        kernel: systems / spec["data_dir"] / f"moe/{version}/moe_perf.parquet" for kernel, version in chosen.moe.items()
    }
    grid, memory = Grid(tables["matmul"]["bf16"]), Curve(tables["memory"])
    about = {
        "source": f"{VERSION} (Apache-2.0), systems/{spec['data_dir']}",
        "files": paths | {f"share of {kernel}": f"moe/{version}" for kernel, version in chosen.moe.items()},
        "measured_on": sorted(gemm["device"].unique().tolist()),
        "extracted": str(date.today()),
        "units": "bytes, microseconds; attention: microseconds of a million numbers of the query",
        "share_of_dense_rate": {
            kernel: share_of(kernel, pd.read_parquet(path), grid, memory) for kernel, path in moe.items()
        },
        "error_of_reduction": errors_of(tables["matmul"], gemm),
    }
    return {"about": about} | tables


def errors_of(tables: Mapping[str, Any], gemm: Rows) -> dict[str, dict[str, float]]:
    """By precision, the reduced table / measured - 1 on every measured row: median, its size, and the 90 % quantile."""
    errors = {}
    for precision, table in tables.items():
        dtype = {ours: theirs for theirs, ours in PRECISIONS.items()}[precision]
        rows, grid = gemm[gemm["gemm_dtype"] == dtype], Grid(table)
        sizes = zip(*(rows[letter].tolist() for letter in "mnk"), strict=True)
        error = np.array([grid.seconds(*size) for size in sizes]) * 1e3 / rows["latency"].to_numpy() - 1
        large = ((rows["m"] >= 1024) & rows["n"].between(512, 4096) & rows["k"].between(512, 4096)).to_numpy()
        errors[precision] = {
            "rows": len(error),
            "bias": round(float(np.median(error)), 4),
            "median": round(float(np.median(abs(error))), 4),
            "p90": round(float(np.quantile(abs(error), 0.9)), 4),
            "median_large": round(float(np.median(abs(error[large]))), 4),
        }
    return errors


def find_package(given: Path | None) -> Path:
    """Where the measured tables are; ValueError says how to install them."""
    if given is not None:
        return given
    spec = find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        raise ValueError("extract_device needs aiconfigurator-core: pip install -e .[devices], or --package PATH")
    return Path(spec.origin).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Extract, print the error, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=DEVICES)
    parser.add_argument("--package", type=Path, help="the folder aiconfigurator_core, where it is not installed")
    options = parser.parse_args(arguments)
    try:
        package = find_package(options.package)
    except ValueError as error:
        print(error)
        return 2
    tables = extract(options.name, package)
    path = TABLES / f"{options.name}.json"
    path.write_text(document(tables))
    print(json.dumps(tables["about"], indent=1), f"wrote {path} ({path.stat().st_size >> 10} KiB)", sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
