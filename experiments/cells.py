"""Cells: what one is, and whether this machine can run it.

A cell's configuration is a plain dict (the resolved Hydra configuration): what it holds decides its id.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from clusters.session import ClusterSpec
from experiments import environment
from experiments.configuration import (
    build_router,
    described_device,
    digest,
    find_class,
    instantiate,
    layer_shape,
    options,
    set_precision,
    system_class,
    without,
)
from experiments.identity import code_digest, data_digest
from routers.drawn import DrawnRouter
from systems.base import System
from systems.engines import find_engine
from systems.engines.auto import choose, preferred
from systems.engines.base import DTYPES
from workloads.checkpoint import open_checkpoint
from workloads.model import ModelShape

# What a cell is, in the order of its hash; the rest (where results go, time limits) changes no number.
DEFINING = (
    *("system", "engine", "model", "router", "corpus", "cluster", "device", "network", "tier"),
    *("batch_size", "seq_len", "precision", "seed"),
)
SHOWING = ("experiment", "scale", "logger", "out")  # the other keys of a configuration


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
        system = without(self.config["system"], "about")  # which says what documentation says
        origin = [code_digest(self.config), data_digest(self.config), environment.identity()]
        if "_target_" in self.config["device"]:
            origin.append(described_device(self.config).identity)
        return digest([self.workload, system, self.engine, *origin, *(["twin"] if self.twin else [])])

    @cached_property
    def workload(self) -> dict[str, Any]:
        """What cells that are launched together have in common."""
        defining = {key: self.config[key] for key in DEFINING if key not in ("system", "engine")}
        defining["cluster"] = without(defining["cluster"], "timeout_s")
        defining["tier"] = without(defining["tier"], "name", "launches")
        return {**defining, "launch": self.launch}

    @property
    def launch_id(self) -> str:
        return digest(self.workload)

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
        shape, cluster, precision = layer_shape(config), self.cluster, config["precision"]
        if cluster.threads is not None:
            check_whole_number("cluster.threads", cluster.threads, 1)
        widths = (shape.d_model, kind.hidden_width(shape, cluster.world_size))
        if cluster.kind in ("simulated", "torchrun"):  # no machine, or several, whose ranks each plan for themselves
            return preferred(cluster.device, precision, widths)
        rows = shape.max_tokens * cluster.world_size
        return choose(cluster.device, precision, shape.num_experts, rows, widths, cluster.threads_per_rank)

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
    numbers |= {f"tier.{key}": tier[key] for key in ("launches", "rounds", "longest_turn")}
    for name, value in numbers.items():
        check_whole_number(name, value, 1)
    for name, value in {"seed": config["seed"], "tier.warmup": tier["warmup"]}.items():
        check_whole_number(name, value, 0)
    if not isinstance(tier["turn_s"], int | float) or not tier["turn_s"] >= 0:
        raise ValueError(f"tier.turn_s is {tier['turn_s']!r}; it must be a number of seconds of at least 0")
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
    own_network = config["network"]["name"] == "device"
    described_device(config).check(config["precision"], cluster.world_size if own_network else None)
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
