"""Cells: what one is, what it is built from, and whether this machine can run it.

A cell's configuration is a plain dict (the resolved Hydra configuration): what it holds decides its id.
"""

import hashlib
import importlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from clusters.session import ClusterSpec
from systems.base import LayerShape, System
from systems.engines import find_engine
from workloads.checkpoint import open_checkpoint
from workloads.model import ModelShape

DTYPES = {"ieee": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCES = {"ieee": 1e-5, "tf32": 5e-3, "bf16": 3e-2, "fp16": 5e-3}
# What a cell is, in the order of its hash; the rest (where results go, time limits) changes no number.
DEFINING = (
    *("system", "engine", "model", "router", "corpus", "cluster", "network", "tier"),
    *("batch_size", "seq_len", "precision", "seed"),
)


@dataclass(frozen=True)
class Cell:
    """One workload point x one system x one launch."""

    config: dict[str, Any]
    launch: int

    @cached_property
    def id(self) -> str:
        """12 hexadecimal digits of a hash of what defines the cell."""
        return _digest({"workload": self.workload, "system": self.config["system"], "engine": self.engine})

    @cached_property
    def workload(self) -> dict[str, Any]:
        """What cells that are launched together have in common."""
        defining = {key: self.config[key] for key in DEFINING if key not in ("system", "engine")}
        defining["cluster"] = {key: value for key, value in defining["cluster"].items() if key != "timeout_s"}
        return {**defining, "launch": self.launch}

    @property
    def launch_id(self) -> str:
        return _digest(self.workload)

    @property
    def system(self) -> str:
        return self.config["system"]["name"]

    @property
    def engine(self) -> str:
        """The engine that computes the experts: the one asked for, else the system's, unless it brings its own."""
        own = system_class(self.config).own_engine
        return own or self.config["engine"] or self.config["system"]["engine"]

    @property
    def cluster(self) -> ClusterSpec:
        return ClusterSpec(**self.config["cluster"])

    @property
    def point(self) -> dict[str, int]:
        """The coordinates that tables show."""
        return {
            "num_experts": self.config["model"]["num_experts"],
            "batch_size": self.config["batch_size"],
            "seq_len": self.config["seq_len"],
            "world_size": self.config["cluster"]["world_size"],
        }


def instantiate(node: dict[str, Any], **values: Any) -> Any:
    """Call the class that `node["_target_"]` names with the node's other keys and `values`."""
    return find_class(node)(**{key: value for key, value in node.items() if key != "_target_"}, **values)


def find_class(node: dict[str, Any]) -> Any:
    """The class that `node["_target_"]` names; ValueError if there is none."""
    module, _, name = str(node["_target_"]).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"_target_ {node['_target_']!r} cannot be imported: {error}") from error


def system_options(node: dict[str, Any]) -> dict[str, Any]:
    """The keys of a system's node that are arguments of its class."""
    return {key: value for key, value in node.items() if key not in ("_target_", "name", "engine")}


def system_class(config: dict[str, Any]) -> type[System]:
    return find_class(config["system"])


def layer_shape(config: dict[str, Any]) -> LayerShape:
    """The MoE layer of a cell's workload."""
    model = config["model"]
    max_tokens = config["batch_size"] * config["seq_len"]
    return LayerShape(model["num_experts"], model["d_model"], model["d_ff"], max_tokens)


def check(cell: Cell) -> None:
    """Raise ValueError (or FileNotFoundError), in one sentence, for a cell that cannot run here; launches nothing."""
    config, cluster = cell.config, cell.cluster
    cluster.check()
    for key in ("batch_size", "seq_len"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise ValueError(f"{key} is {config[key]!r}; it must be a whole number of at least 1")
    _check_precision(config["precision"], cluster.device)
    set_precision(config["precision"])  # engines ask for it
    model: ModelShape = instantiate(config["model"])
    model.check()
    if model.checkpoint:
        open_checkpoint(model.checkpoint).check(model)
    shape, system = layer_shape(config), system_class(config)
    system.check(shape, cluster.world_size, **system_options(config["system"]))
    if system.own_engine is None:
        widths = [shape.d_model, system.hidden_width(shape, cluster.world_size)]
        find_engine(cell.engine).check(torch.device(cluster.device), DTYPES[config["precision"]], widths)
    elif config["engine"] is not None:
        raise ValueError(f"system {cell.system} brings its own engine; engine={config['engine']} does not apply to it")
    build_router(config, rank=0, classifier=None)
    instantiate(config["network"])
    instantiate(config["corpus"]).check()


def build_router(config: dict[str, Any], *, rank: int, classifier: Any) -> Any:
    """The router of a workload on one rank; `classifier(block)` gives the model's router matrix [E, D]."""
    num_experts, seed = config["model"]["num_experts"], config["seed"]
    return instantiate(config["router"], num_experts=num_experts, rank=rank, seed=seed, classifier=classifier)


def set_precision(precision: str) -> None:
    """Make float32 matrix products IEEE, or TF32 where the precision says so."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def _check_precision(precision: str, device: str) -> None:
    if precision not in DTYPES:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(DTYPES)}")
    if precision == "tf32" and device == "cpu":
        raise ValueError("precision=tf32 exists on CUDA GPUs only; on a CPU use precision=ieee or bf16")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
