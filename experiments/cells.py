"""Cells: what one is, what it is built from, and whether this machine can run it.

A cell's configuration is a plain dict (the resolved Hydra configuration): what it holds decides its id.
"""

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from clusters.session import ClusterSpec
from experiments import environment
from routers.drawn import DrawnRouter
from systems.base import LayerShape, System
from systems.engines import find_engine
from systems.engines.auto import DTYPES, choose
from workloads.batches import TokenSource
from workloads.checkpoint import open_checkpoint
from workloads.model import ModelShape

TOLERANCES = {"ieee": 1e-5, "tf32": 5e-3, "bf16": 3e-2, "fp16": 5e-3}
# What a cell is, in the order of its hash; the rest (where results go, time limits) changes no number.
DEFINING = (
    *("system", "engine", "model", "router", "corpus", "cluster", "device", "network", "tier"),
    *("batch_size", "seq_len", "precision", "seed"),
)
SHOWING = ("experiment", "scale", "logger", "out")  # the other keys of a configuration
ROOT = Path(__file__).parents[1]
RANK_PACKAGES = ("systems", "routers", "workloads", "clusters", "devices", "experiments")
# What constructors of systems and routers get from the harness, not from a configuration.
SUPPLIED = {"shape", "weights", "group", "span", "rates", "profile", "rank", "moe_blocks", "classifier"}
SOURCES = {".py", ".cpp", ".cu", ".cuh", ".h"}
INSTALLED = {"site-packages", "dist-packages"}  # folders of what is known by its version
OPTIONAL_PHASES = ("warmup", "instrumented")


@dataclass(frozen=True)
class Cell:
    """One workload point x one system x one launch.

    A twin is the same system measured again in the same launch: the second half of an A/A pair.
    """

    config: dict[str, Any]
    launch: int
    twin: bool = False

    @cached_property
    def id(self) -> str:
        """12 hexadecimal digits of a hash of what defines the cell, code, versions and machine included."""
        system = self.config["system"]
        origin = [code_digest(self.config), data_digest(self.config), environment.identity()]
        if "_target_" in self.config["device"]:
            origin.append(described_device(self.config).identity)
        return _digest([self.workload, system, self.engine, *origin, *(["twin"] if self.twin else [])])

    @cached_property
    def workload(self) -> dict[str, Any]:
        """What cells that are launched together have in common."""
        defining = {key: self.config[key] for key in DEFINING if key not in ("system", "engine")}
        defining["cluster"] = _without(defining["cluster"], "timeout_s")
        defining["tier"] = _without(defining["tier"], "name", "launches")
        return {**defining, "launch": self.launch}

    @property
    def launch_id(self) -> str:
        return _digest(self.workload)

    @property
    def system(self) -> str:
        return self.config["system"]["name"]

    @cached_property
    def engine(self) -> str:
        """The engine that computes the experts: the one asked for, else the system's, unless it brings its own.

        What `auto` chooses is an engine like any other: it is shown, stored, and part of the cell's id.
        """
        kind, config = system_class(self.config), self.config
        name = kind.own_engine or config["engine"] or config["system"]["engine"]
        return self._chosen(kind) if name == "auto" else name

    def _chosen(self, kind: type[System]) -> str:
        """What `auto` chooses; ValueError for sizes that are none, which ids are asked for before anything checks."""
        config = self.config
        check_precision(config["precision"], config["cluster"]["device"])
        for name in ("batch_size", "seq_len"):
            check_whole_number(name, config[name], 1)
        for node, name in (("cluster", "world_size"), *(("model", key) for key in ("num_experts", "d_model", "d_ff"))):
            check_whole_number(f"{node}.{name}", config[node][name], 1)
        shape, ranks = layer_shape(config), config["cluster"]["world_size"]
        widths = (shape.d_model, kind.hidden_width(shape, ranks))
        return choose(
            config["cluster"]["device"], config["precision"], shape.num_experts, shape.max_tokens * ranks, widths
        )

    @property
    def cluster(self) -> ClusterSpec:
        return ClusterSpec(**self.config["cluster"])

    @property
    def label(self) -> str:
        """The workload in a line of progress."""
        router = self.config["router"]
        shown = [f"{key}={router[key]:g}" for key in ("alpha", "skewed_share") if router.get(key) is not None]
        if router.get("num_skewed") is not None:
            shown[-1] = f"num_skewed={router['num_skewed']}"
        point = self.point
        return f"E={point['num_experts']} batch={point['batch_size']} {' '.join([router['name'], *shown])}"

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
    """Call the class that `node["_target_"]` names with the node's other keys and `values`; nested nodes first.

    Raises ValueError for a key that the class has no option for.
    """
    given = {name: instantiate(own) if _is_node(own) else own for name, own in _without(node, "_target_").items()}
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


def _is_node(value: Any) -> bool:
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
    given = _without(node, "_target_", "name", "engine")
    for name in given.keys() - (_parameters(find_class(node)) - SUPPLIED):
        raise ValueError(f"{node['name']} has no option {name!r}")
    return {name: instantiate(value) if _is_node(value) else value for name, value in given.items()}


def code_digest(config: dict[str, Any]) -> str:
    """Hash of the sources that ranks run: this repository's packages and those of all classes that are configured."""
    kinds = {kind for node in _nodes(config) for kind in find_class(node).__mro__ if kind.__module__ != "builtins"}
    return _sources_digest(frozenset(kinds))


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All that name a class, within one another."""
    if isinstance(value, dict):
        if _is_node(value):
            yield value
        for part in value.values():
            yield from _nodes(part)


@cache
def _sources_digest(kinds: frozenset[type]) -> str:
    own = {path for package in RANK_PACKAGES for path in _sources_under(ROOT / package)}
    paths = own.union(*map(_sources, kinds))
    return _digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)])


def _sources(kind: type) -> set[Path]:
    """All of the package that a class is from; its file, where that is installed or no package."""
    package = sys.modules[kind.__module__.partition(".")[0]]
    found = [_sources_under(Path(folder)) for folder in getattr(package, "__path__", ())]
    return set().union(*found) or {Path(inspect.getfile(kind))}


def _sources_under(folder: Path) -> set[Path]:
    files = (path for path in folder.rglob("*.*") if path.suffix in SOURCES and path.is_file())
    return {path for path in files if not INSTALLED & set(path.parts) or INSTALLED & set(ROOT.parts)}


def data_digest(config: dict[str, Any]) -> str:
    """Hash of the files that decide weights and routing: a checkpoint's configuration and index, a recorded trace."""
    model: ModelShape = instantiate(config["model"])
    files = open_checkpoint(model.checkpoint).describing_files if model.checkpoint else []
    if trace := getattr(find_class(config["router"]), "trace_file", None):
        files = [*files, trace(**options(config["router"]))]
    return _digest([_file_digest(path) for path in files])


@cache
def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


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


class Unsupported(ValueError):
    """The system cannot run this workload, whose configuration is sound."""


def check(cell: Cell) -> None:
    """Raise ValueError (or OSError), in one sentence, for a cell that cannot run here; launches nothing.

    The error is Unsupported where only this system cannot run the workload. Sets the process's float32 precision,
    because engines ask for it.
    """
    try:
        _check_workload(cell.config)
        _check_system(cell)
    except (TypeError, AttributeError) as error:  # a value of a type that its class cannot take
        raise ValueError(f"the configuration of {cell.system} has a value of the wrong type: {error}") from error


def _check_workload(config: dict[str, Any]) -> None:
    for key in config.keys() - {*DEFINING, *SHOWING}:
        raise ValueError(f"there is no key {key!r}; the keys are {', '.join((*DEFINING, *SHOWING))}")
    cluster = ClusterSpec(**config["cluster"])
    cluster.check()
    tier = config["tier"]
    numbers = {"batch_size": config["batch_size"], "seq_len": config["seq_len"]}
    numbers |= {f"tier.{key}": tier[key] for key in ("launches", "iterations", "max_iterations", "block")}
    for name, value in numbers.items():
        check_whole_number(name, value, 1)
    for name, value in {"seed": config["seed"], **{f"tier.{key}": tier[key] for key in OPTIONAL_PHASES}}.items():
        check_whole_number(name, value, 0)
    if tier["max_iterations"] < tier["iterations"]:
        least = f"tier.iterations ({tier['iterations']})"
        raise ValueError(f"tier.max_iterations is {tier['max_iterations']}; it must be at least {least}")
    if not isinstance(tier["target"], int | float) or not 0 < tier["target"] < 1:
        raise ValueError(f"tier.target is {tier['target']!r}; it must be a share between 0 and 1")
    check_precision(config["precision"], cluster.device)
    _check_device(config, cluster)
    set_precision(config["precision"])
    model: ModelShape = instantiate(config["model"])
    model.check()
    if model.checkpoint:
        open_checkpoint(model.checkpoint).check(model)
    build_router(config, rank=0, classifier=None)
    if config["network"]["name"] != "device":
        instantiate(config["network"])
    instantiate(config["corpus"]).check()


def _check_device(config: dict[str, Any], cluster: ClusterSpec) -> None:
    """Raise ValueError where a described device is asked for and none is needed, or what it lacks, or the reverse."""
    described, simulated = "_target_" in config["device"], cluster.kind == "simulated"
    if not simulated:
        for key, value in (("device", config["device"]["name"]), ("network", config["network"]["name"])):
            if described or value == "device":
                raise ValueError(f"{key}={value} is for cluster=simulated, and cluster is {cluster.kind}")
        return
    if not described:
        raise ValueError("cluster=simulated needs a described device: device=a100_sxm, or another one of conf/device")
    described_device(config).check(config["precision"], cluster.world_size)
    if not issubclass(find_class(config["router"]), DrawnRouter):
        raise ValueError(
            f"router={config['router']['name']} looks at activations, which simulated ranks do not compute; "
            "use a router that draws or replays, such as synthetic or trace, or cluster=emulated"
        )


def _check_system(cell: Cell) -> None:
    config, cluster = cell.config, cell.cluster
    shape, system, given = layer_shape(config), system_class(config), options(config["system"])
    engine = None if system.own_engine else find_engine(cell.engine)
    if system.own_engine and config["engine"] is not None:
        raise ValueError(f"system {cell.system} brings its own engine; engine={config['engine']} does not apply to it")
    try:
        system.check(shape, cluster.world_size, **given)
        if "draws" in system.needs(**given) and not issubclass(find_class(config["router"]), DrawnRouter):
            router = config["router"]["name"]
            raise ValueError(f"system {cell.system} must know every draw beforehand; router={router} cannot tell")
        if engine:
            widths = [shape.d_model, system.hidden_width(shape, cluster.world_size)]
            engine.check(torch.device(cluster.device), DTYPES[config["precision"]], widths)
    except ValueError as error:
        raise Unsupported(str(error)) from error


def build_router(config: dict[str, Any], *, rank: int, classifier: Any) -> Any:
    """The router of a workload on one rank; `classifier(block)` gives the model's router matrix [E, D]."""
    node, model = config["router"], instantiate(config["model"])
    given = {"num_experts": model.num_experts, "rank": rank, "seed": config["seed"]}
    return find_class(node)(**options(node), **given, moe_blocks=model.moe_blocks, classifier=classifier)


def set_precision(precision: str) -> None:
    """Make float32 matrix products IEEE, or TF32 where the precision says so."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Raise ValueError for a value that is none."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")


def check_precision(precision: str, device: str) -> None:
    """Raise ValueError for a precision that does not exist on the device."""
    if precision not in DTYPES:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(DTYPES)}")
    if precision == "tf32" and device == "cpu":
        raise ValueError("precision=tf32 exists on CUDA GPUs only; on a CPU use precision=ieee or bf16")


def _without(node: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in names}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
