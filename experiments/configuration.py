"""From configurations to objects: the classes that nodes name, their options, and what a workload consists of."""

import hashlib
import importlib
import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from experiments.records import Workload
from experiments.values import check_value, meant
from systems.base import LayerShape
from workloads.batches import TokenSource
from workloads.checkpoint import open_checkpoint
from workloads.model import ModelShape

TOLERANCES = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 3e-2, "fp16": 5e-3}
# What constructors of systems and routers get from the harness, not from a configuration.
SUPPLIED = {
    "shape",
    "weights",
    "group",
    "engine",
    "span",
    "rates",
    "sequences",
    "regime",
    "profile",
    "rank",
    "top_k",
    "moe_blocks",
    "classifier",
}
LABELS = {"name", "engine", "about"}  # a node's own, unless its class takes it


def instantiate(node: dict[str, Any], where: str = "", **values: Any) -> Any:
    """Call the class that a node names with its options and `values`; where: its place in the configuration."""
    return find_class(node)(**options(node, where), **values)


def options(node: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The options of the class in a node, nested nodes built; ValueError for what it has not or cannot be."""
    kind, given = find_class(node), without(node, "_target_")
    decided = SUPPLIED | getattr(kind, "fixed", {}).keys()
    taken = {name: one for name, one in parameters(kind).items() if name not in decided}
    for name in LABELS - taken.keys():
        given.pop(name, None)
    for name, value in given.items():
        if name not in taken:
            called = node.get("name", kind.__name__)
            raise ValueError(f"{called} has no option {name!r}; {meant(name, list(taken), 'its options are')}")
        key = f"{where}.{name}".lstrip(".")
        if is_node(value):
            given[name] = instantiate(value, key)
        else:
            check_value(key, value, taken[name].annotation, {})
    return given


def parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """By name, what the constructors of a class and of its base classes take; the class's own win."""
    bases = [base for base in reversed(kind.__mro__) if "__init__" in vars(base) and base is not object]
    every = [one for base in bases for one in inspect.signature(base.__init__).parameters.values()]
    unnamed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {one.name: one for one in every if one.kind not in unnamed and one.name != "self"}


def described_device(workload: Workload) -> Any:
    """The described device (`devices.Device`) of a workload; one object for all cells that name it alike."""
    return _described(json.dumps(workload.device, sort_keys=True))


@cache
def _described(node: str) -> Any:
    return instantiate(json.loads(node), "device")


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


def token_source(workload: Workload, cache_dir: str | Path) -> TokenSource:
    """What reads a workload's tokens: one for all ranks and cells of this process."""
    model = workload.model
    folder = open_checkpoint(model.checkpoint).folder if model.checkpoint else None
    return _token_source(json.dumps(workload.corpus, sort_keys=True), model.vocab_size, str(cache_dir), folder)


@cache
def _token_source(corpus: str, vocab_size: int, cache_dir: str, checkpoint: Path | None) -> TokenSource:
    return TokenSource(instantiate(json.loads(corpus), "corpus"), vocab_size, cache_dir, checkpoint)


def layer_shape(workload: Workload) -> LayerShape:
    """The MoE layer of a workload."""
    return layer_shape_of(workload.model, max(workload.tokens_G))


def layer_shape_of(model: ModelShape, max_tokens: int) -> LayerShape:
    """The MoE layer of a model to which ranks bring so many tokens at most."""
    return LayerShape(
        model.num_experts,
        model.d_model,
        model.d_ff,
        max_tokens,
        top_k=model.top_k,
        activation=model.activation,
        biased=model.biased,
    )


def build_router(workload: Workload, *, rank: int, classifier: Any) -> Any:
    """The router of a workload on one rank; `classifier(block)` gives the model's router matrix [E, D]."""
    model = workload.model
    given = {"num_experts": model.num_experts, "top_k": model.top_k, "rank": rank, "seed": workload.seed}
    given |= {"sequences": workload.sequences_G[rank], "regime": model.regime(workload.regime)}
    return instantiate(workload.router, "router", **given, moe_blocks=model.moe_blocks, classifier=classifier)


def set_precision(precision: str) -> None:
    """Make float32 matrix products IEEE, or TF32 where the precision says so."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def without(node: dict[str, Any], *names: str) -> dict[str, Any]:
    """A copy of the dict, less these keys."""
    return {key: value for key, value in node.items() if key not in names}


def digest(value: Any) -> str:
    """12 hexadecimal digits of a hash of what JSON makes of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
