"""A described device whose prices are easy to reckon with, and ranks that simulate it in a process of their own.

A process simulates one number of ranks for all its life, so that every number of ranks has a process here.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from clusters.network import Network
from clusters.simulated import Simulated
from clusters.simulated.on_device import OnDevice
from clusters.simulated.operations import Simulation
from clusters.simulated.schemas import META
from clusters.simulated.timeline import Event, Timeline
from clusters.simulated.values import Storages

SECOND_US = 1e6


@dataclass(frozen=True)
class Host:
    """Issuing costs nothing unless a test says so."""

    operation_us: float = 0.0
    launch_us: float = 0.0
    view_us: float = 0.0
    collective_us: float = 0.0
    synchronise_us: float = 0.0
    synchronous: bool = False
    unrepeated: float = 1.0


@dataclass(frozen=True)
class Device:
    """Seconds a kernel, a byte in memory or on the way from or to the host, and a multiplication with its addition."""

    host: Host = field(default_factory=Host)
    memory_bytes: float = float("inf")
    kernel_s: float = 0.0
    byte_s: float = 0.0
    transferred_byte_s: float = 0.0
    product_s: float = 0.0
    scanned_row_s: float = 0.0

    def matmul_s(self, batch, m, n, k, precision):
        return self.kernel_s + self.product_s * batch * m * n * k

    def grouped_s(self, kernel, rows_e, n, k, precision):
        return self.kernel_s + self.product_s * sum(rows_e) * n * k

    def is_one_kernel(self, kernel, precision):
        return precision == "bf16"

    def attention_s(self, batch, heads, query, key, head_dim, precision):
        return self.kernel_s

    def memory_s(self, num_bytes):
        return self.kernel_s + self.byte_s * num_bytes

    def scan_s(self, num_rows):
        return self.scanned_row_s * num_rows

    def transfer_s(self, num_bytes):
        return self.kernel_s + self.transferred_byte_s * num_bytes

    def network(self, world_size):
        return Network("free")

    def check(self, precision, world_size):
        return


def with_host(**costs: Any) -> Device:
    """A device of kernels of one second, with these costs of its host."""
    return Device(host=Host(**costs), kernel_s=1.0)


def alone(program: Callable[[Timeline], Any], device: Device | None = None) -> tuple[Any, Timeline]:
    """`program(timeline)` on one rank that has nobody to talk to; what it returns, and its timeline with events."""
    device, storages = device or Device(), Storages()
    line = Timeline(0, device.host, device.memory_bytes)
    line.keep_events = True
    with torch.no_grad(), OnDevice(storages), Simulation(line, device, storages, "fp32", {}):
        return program(line), line


@dataclass(frozen=True)
class Ran:
    """What ranks left: results and events by rank, or why they failed."""

    results: list[Any]
    events: list[list[Event]]
    times: list[tuple[float, float, float]]  # of host, device and link when the program was through
    failure: str | None = None


def simulate(
    program: Callable[..., Any],
    *given: Any,
    ranks: int = 3,
    device: Device | None = None,
    network: Any = None,
    declared: Any = None,
) -> Ran:
    """`program(session, timeline, *given)`, a function of a module, on so many ranks of a process of their own."""
    cluster = Simulated(device or Device(), network or Network("free"), ranks, "fp32", declared or {})
    return _process(ranks).submit(_run, cluster, program, given).result(timeout=120)


def call(function: Callable[..., Any], *given: Any, ranks: int) -> Any:
    """`function(*given)` in the process that simulates so many ranks."""
    return _process(ranks).submit(function, *given).result(timeout=280)


@cache
def _process(ranks: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("forkserver"))


def _run(cluster: Simulated, program: Callable[..., Any], given: tuple[Any, ...]) -> Ran:
    lines: dict[int, Timeline] = {}

    def rank_program(session: Any, timeline: Timeline) -> Any:
        lines[session.rank] = timeline
        with torch.no_grad():
            return program(session, timeline, *given)

    results, failure = [], None
    try:
        results = cluster.run(rank_program, keep_events=True)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}; {' '.join(getattr(error, '__notes__', []))}"
    known = [lines[rank] for rank in sorted(lines)]
    times = [(line.host_s, line.device_s, max(line.links_s.values())) for line in known]
    return Ran(results, [line.events for line in known], times, failure)


__all__ = ["META", "SECOND_US", "Device", "Event", "Host", "Ran", "alone", "call", "replace", "simulate", "with_host"]
