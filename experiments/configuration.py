"""From configurations to objects: the classes that nodes name, their options, and what a workload consists of.

A configuration is a plain dict (the resolved Hydra configuration); a node is a dict with `_target_`, a class by name.
"""

import hashlib
import importlib
import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from systems.base import LayerShape, System
from workloads.batches import TokenSource
from workloads.checkpoint import open_checkpoint
from workloads.model import ModelShape

TOLERANCES = {"ieee": 1e-5, "tf32": 5e-3, "bf16": 3e-2, "fp16": 5e-3}
# What constructors of systems and routers get from the harness, not from a configuration.
SUPPLIED = {"shape", "weights", "group", "span", "rates", "profile", "rank", "moe_blocks", "classifier"}


def instantiate(node: dict[str, Any], **values: Any) -> Any:
    """Call the class that `node["_target_"]` names with the node's other keys and `values`; nested nodes first.

    Raises ValueError for a key that the class has no option for.
    """
    given = {name: instantiate(own) if is_node(own) else own for name, own in without(node, "_target_").items()}
    kind = find_class(node)
    for name in given.keys() - _parameters(kind):
        raise ValueError(f"{kind.__name__} has no option {name!r}")
    return kind(**given, **values)


def _parameters(kind: Any) -> set[str]:
    """The names that the constructors of a class and of its base classes take."""
    constructors = [base.__init__ for base in kind.__mro__ if "__init__" in vars(base)]
    parameters = [p for constructor in constructors for p in inspect.signature(constructor).parameters.values()]
    return {parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD} - {"self"}


def described_device(config: dict[str, Any]) -> Any:
    """The described device (`devices.Device`) of a configuration; one object for all cells that name it alike."""
    return _instantiated(json.dumps(config["device"], sort_keys=True))


@cache
def _instantiated(node: str) -> Any:
    return instantiate(json.loads(node))


def is_node(value: Any) -> bool:
    """Whether a part of a configuration names a class."""
    return isinstance(value, dict) and "_target_" in value


def find_class(node: dict[str, Any]) -> Any:
    """The class that `node["_target_"]` names; ValueError if there is none."""
    module, _, name = str(node["_target_"]).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"_target_ {node['_target_']!r} cannot be imported ({error}); is its parent directory on PYTHONPATH?"
        ) from error


def options(node: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a system's or router's class in its node; ValueError names one that the class does not have."""
    given = without(node, "_target_", "name", "engine", "about")
    for name in given.keys() - (_parameters(find_class(node)) - SUPPLIED):
        raise ValueError(f"{node['name']} has no option {name!r}")
    return {name: instantiate(value) if is_node(value) else value for name, value in given.items()}


def token_source(config: dict[str, Any], cache_dir: str | Path) -> TokenSource:
    """What reads a workload's tokens: one for all ranks and cells of this process."""
    model: ModelShape = instantiate(config["model"])
    folder = open_checkpoint(model.checkpoint).folder if model.checkpoint else None
    return _token_source(json.dumps(config["corpus"], sort_keys=True), model.vocab_size, str(cache_dir), folder)


@cache
def _token_source(corpus: str, vocab_size: int, cache_dir: str, checkpoint: Path | None) -> TokenSource:
    return TokenSource(instantiate(json.loads(corpus)), vocab_size, cache_dir, checkpoint)


def system_class(config: dict[str, Any]) -> type[System]:
    """The class that a cell's configuration names."""
    return find_class(config["system"])


def layer_shape(config: dict[str, Any]) -> LayerShape:
    """The MoE layer of a cell's workload."""
    model = config["model"]
    max_tokens = config["batch_size"] * config["seq_len"]
    return LayerShape(model["num_experts"], model["d_model"], model["d_ff"], max_tokens)


def build_router(config: dict[str, Any], *, rank: int, classifier: Any) -> Any:
    """The router of a workload on one rank; `classifier(block)` gives the model's router matrix [E, D]."""
    node, model = config["router"], instantiate(config["model"])
    given = {"num_experts": model.num_experts, "rank": rank, "seed": config["seed"]}
    return find_class(node)(**options(node), **given, moe_blocks=model.moe_blocks, classifier=classifier)


def set_precision(precision: str) -> None:
    """Make float32 matrix products IEEE, or TF32 where the precision says so."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def without(node: dict[str, Any], *names: str) -> dict[str, Any]:
    """A copy of the dict, less these keys."""
    return {key: value for key, value in node.items() if key not in names}


def digest(value: Any) -> str:
    """12 hexadecimal digits of a hash of what JSON makes of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
