"""Cells: what one is, and whether this machine can run it."""

import json
from dataclasses import dataclass
from functools import cache, cached_property
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
    is_node,
    layer_shape,
    options,
    set_precision,
    without,
)
from experiments.identity import code_digest, data_digest
from experiments.records import Config, Node, Workload, document, read
from experiments.values import check_record
from routers.drawn import DrawnRouter
from systems.base import System
from systems.engines import find_engine
from systems.engines.auto import choose, preferred
from systems.engines.base import DTYPES
from workloads.batches import check_shares
from workloads.checkpoint import open_checkpoint
from workloads.model import DECODE, ModelShape


@dataclass(frozen=True)
class Cell:
    """One workload point x one system x one launch.

    A twin is the same system measured again in the same launch: the second half of an A/A pair.
    """

    config: Config
    launch: int
    twin: bool = False

    @cached_property
    def id(self) -> str:
        """12 hexadecimal digits of a hash of what defines the cell, code, versions and machine included."""
        system = without(self.config.system, "about")  # which says what documentation says
        origin = [code_digest(self.config), data_digest(self.config), environment.identity()]
        if is_node(self.config.device):
            origin.append(described_device(self.config).identity)
        return digest([self.shared, system, self.engine, *origin, *(["twin"] if self.twin else [])])

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What cells that are launched together have in common: all of the workload that can change a number."""
        shared = document(self.config.workload)
        del shared["tier"]["name"], shared["tier"]["launches"], shared["cluster"]["timeout_s"]
        return {**shared, "launch": self.launch}

    @property
    def launch_id(self) -> str:
        return digest(self.shared)

    @property
    def system(self) -> str:
        return self.config.system.name

    @cached_property
    def engine(self) -> str:
        """The engine that computes the experts: the one asked for, else the system's, unless it brings its own.

        What `auto` chooses is an engine like any other: it is shown, stored, and part of the cell's id.
        """
        kind, config = find_class(self.config.system), self.config
        name = kind.own_engine or config.engine or config.system["engine"]
        return self._chosen(kind) if name == "auto" else name

    def _chosen(self, kind: type[System]) -> str:
        """What `auto` chooses; ValueError for sizes that are none, which ids are asked for before anything checks."""
        config, cluster = self.config, self.cluster
        check_record(config)
        check_shares(config.batch_shares, cluster.world_size)
        check_precision(config.precision, cluster.device)
        shape = layer_shape(config)
        widths = (shape.d_model, kind.hidden_width(shape, cluster.world_size))
        if cluster.kind in ("simulated", "torchrun"):  # no machine, or several, whose ranks each plan for themselves
            return preferred(cluster.device, config.precision, widths)
        rows = sum(config.tokens_G) * shape.top_k
        work = (config.precision, shape.num_experts, rows, widths, cluster.threads_per_rank, shape.activation)
        return choose(cluster.device, *work)

    @property
    def cluster(self) -> ClusterSpec:
        return self.config.cluster

    @property
    def is_simulated(self) -> bool:
        return self.config.is_simulated

    @property
    def label(self) -> str:
        """The workload in a line of progress."""
        router = self.config.router
        shown = [f"{key}={router[key]:g}" for key in ("alpha", "skewed_share") if router.get(key) is not None]
        if router.get("num_skewed") is not None:
            shown[-1] = f"num_skewed={router['num_skewed']}"
        point, shares = self.point, self.config.batch_shares
        batch = f"batch={point['batch_size']}" + (f"x{shares}" if shares else "")
        return f"E={point['num_experts']} {batch} {' '.join([router.name, *shown])}"

    @property
    def point(self) -> dict[str, int]:
        """The coordinates that tables show."""
        return {
            "num_experts": self.config.model.num_experts,
            "batch_size": self.config.batch_size,
            "seq_len": self.config.seq_len,
            "world_size": self.config.cluster.world_size,
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


def _check_workload(workload: Workload) -> None:
    check_record(workload)
    workload.cluster.check()
    check_shares(workload.batch_shares, workload.cluster.world_size)
    check_precision(workload.precision, workload.cluster.device)
    _check_device(workload)
    set_precision(workload.precision)
    _check_model(json.dumps(document(workload.model), sort_keys=True))
    if workload.model.regime(workload.regime) == DECODE and workload.seq_len < 2:
        raise ValueError(f"seq_len is {workload.seq_len}; regime=decode needs at least 2, of which the last is decoded")
    build_router(workload, rank=0, classifier=None)
    if workload.network.name != "device":
        instantiate(workload.network, "network")
    instantiate(workload.corpus, "corpus").check()


@cache
def _check_model(stored: str) -> None:
    """By its JSON, because the cells of a campaign share a model; what is refused is tried again."""
    model = read(ModelShape, json.loads(stored))
    model.check()
    checkpoint = open_checkpoint(model.checkpoint) if model.checkpoint else None
    if checkpoint:
        checkpoint.check(model)
    if model.is_decoder:
        from workloads.decoder import check_decoder  # transformers costs seconds

        check_decoder(model, checkpoint)


def _check_device(workload: Workload) -> None:
    """Raise ValueError where a described device is asked for and none is needed, or what it lacks, or the reverse."""
    described, cluster, network = is_node(workload.device), workload.cluster, workload.network.name
    if cluster.kind != "simulated":
        for key, value in (("device", workload.device.name), ("network", network)):
            if described or value == "device":
                raise ValueError(f"{key}={value} is for cluster=simulated, and cluster is {cluster.kind}")
        return
    if not described:
        raise ValueError("cluster=simulated needs a described device: device=a100_sxm, or another one of conf/device")
    described_device(workload).check(workload.precision, cluster.world_size if network == "device" else None)
    if not draws_beforehand(workload.router):
        raise ValueError(
            f"router={workload.router.name} looks at activations, which simulated ranks do not compute; "
            "use a router that draws or replays, such as synthetic or trace, or cluster=emulated"
        )


def draws_beforehand(router: Node) -> bool:
    """Whether the router can tell its draws before it sees tokens."""
    return issubclass(find_class(router), DrawnRouter)


def _check_system(cell: Cell) -> None:
    config, cluster = cell.config, cell.cluster
    shape, system = layer_shape(config), find_class(config.system)
    every = system.every_option(**options(config.system, "system"))
    engine = None if system.own_engine else find_engine(cell.engine, shape.activation)
    if system.own_engine and config.engine is not None:
        raise ValueError(f"system {cell.system} brings its own engine; engine={config.engine} does not apply to it")
    try:
        system.check(shape, cluster.world_size, **every)
        if "draws" in system.needs(**every) and not draws_beforehand(config.router):
            router = config.router.name
            raise ValueError(f"system {cell.system} must know every draw beforehand; router={router} cannot tell")
        if engine:
            widths = [shape.d_model, system.hidden_width(shape, cluster.world_size)]
            engine.check(torch.device(cluster.device), DTYPES[config.precision], widths)
    except ValueError as error:
        raise Unsupported(str(error)) from error


def check_precision(precision: str, device: str) -> None:
    """Raise ValueError for a precision that does not exist on the device."""
    if precision == "tf32" and device == "cpu":
        raise ValueError("precision=tf32 exists on CUDA GPUs only; on a CPU use precision=fp32 or bf16")
