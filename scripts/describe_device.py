"""Measure the machine at hand as a device that simulated clusters can use.

    python -m scripts.describe_device                       # this CPU, one thread: conf/device/here.yaml
    python -m scripts.describe_device ours --device cuda    # the current GPU: conf/device/ours.yaml

Timed are dense and batched products, our engines' kernels for experts at even and skewed rows, fused attention with an
additive bias, copies, sums and gathers of memory by size, copies between host and device, and what the host pays to
issue an operation, a view and to read a value. Times are medians of repeated calls. On a CPU each call has operands of
its own, as in a program: the first was just written, the others are in no cache unless they are small. Issuing is
taken off, because there the host waits for every operation and its clock has it already. A GPU's times are its own, by
events, with warm caches.

Collectives take several devices: --network names what conf/network has of them (scripts/calibrate_network.py).
"""

import argparse
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch
import yaml

from clusters.launch import PROCESS_ENVIRONMENT
from devices import Device, Host
from devices.device import TABLES
from devices.load import CONF
from experiments.environment import describe
from experiments.machine import state
from scripts.description.kernels import APART, measure_kernels
from scripts.description.measure import MEASURED, PRECISIONS, Machine, measure_tables, peaks_of
from scripts.description.tables import document

NETWORKS = CONF.with_name("network")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="here", help="of the device; default here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=150.0, help="of measuring, about; set-up comes on top")
    parser.add_argument("--network", help="file of conf/network that holds its collectives; default gloo_here if there")
    parser.add_argument("--conf", type=Path, default=CONF, help="folder of the .yaml")
    return parser.parse_args(arguments)


def network_node(name: str | None, kind: str) -> dict[str, Any] | None:
    """The network's own node; ValueError for one that is not there or is composed of others."""
    if name is None and kind == "cpu" and (NETWORKS / "gloo_here.yaml").exists():
        name = "gloo_here"
    if name is None:
        return None
    path = NETWORKS / f"{name}.yaml"
    if not path.exists():
        raise ValueError(f"--network is {name}, but there is no {path}")
    node = yaml.safe_load(path.read_text())
    if "defaults" in node:
        raise ValueError(f"--network is {name}, which is composed of other files; name one that stands alone")
    return node


def check(options: argparse.Namespace) -> None:
    """Raise ValueError, in one sentence, for what cannot be measured here."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch finds no CUDA device here")
    if options.seconds <= 0:
        raise ValueError(f"--seconds is {options.seconds}; it must be positive")


def hardware(kind: str) -> dict[str, Any]:
    """Title, memory and multiprocessors."""
    if kind == "cpu":
        title = f"{describe()['cpu']}, one thread"
        return {"title": title, "memory_bytes": psutil.virtual_memory().total, "multiprocessors": 1}
    gpu = torch.cuda.get_device_properties(0)
    return {"title": gpu.name, "memory_bytes": gpu.total_memory, "multiprocessors": gpu.multi_processor_count}


def describe_here(options: argparse.Namespace, network: Mapping[str, Any] | None) -> dict[str, Any]:
    """Measure, write the tables and return the device's node."""
    kind, busy_share, start = options.device, state("cpu")["busy_share"], perf_counter()
    machine = Machine(torch.device(kind, 0), options.seconds)
    tables = measure_tables(machine, MEASURED[kind])
    source = f"measured {date.today()} (torch {torch.__version__}, {busy_share:.0%} busy before, {platform.node()})"
    node = {"name": options.name} | hardware(kind)
    node |= {"kind": kind, "precisions": list(PRECISIONS[kind]), "peak_tflops": peaks_of(tables["matmul"])}
    node |= {"tables": options.name, "source": source}
    about: dict[str, Any] = {"source": source, "units": "bytes, microseconds; a CPU's without issuing"}
    path = TABLES / f"{options.name}.json"
    path.write_text(document({"about": about} | tables))

    device = Device(**node, host=Host(**machine.host), grouped={})
    precision = "bf16" if kind == "cuda" else "fp32"
    found = list(measure_kernels(machine, precision, device.with_kernel, 0.25))
    about |= {"kernels": {kernel: said for kernel, _, said in found}, "seconds": round(perf_counter() - start)}
    path.write_text(document({"about": about} | tables))
    grouped = APART[kind] | {kernel: choices for kernel, choices, _ in found}
    target = {"_target_": "devices.Device"}
    node = target | node | {"host": {"_target_": "devices.Host"} | machine.host, "grouped": grouped}
    return node | ({"within_node": dict(network)} if network else {})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write conf/device/NAME.yaml and devices/tables/NAME.json."""
    options = parse(arguments)
    try:
        check(options)
        network = network_node(options.network, options.device)
    except ValueError as error:
        print(f"describe_device: {error}")
        return 2
    torch.set_num_threads(1)
    print(f"describe_device: about {1.3 * options.seconds:.0f} s", flush=True)
    with torch.inference_mode():
        node = describe_here(options, network)
    header = "# Measured by scripts/describe_device.py; devices/tables has the tables.\n"
    path = options.conf / f"{options.name}.yaml"
    path.write_text(header + yaml.safe_dump(node, sort_keys=False, default_flow_style=None, width=120))
    print(yaml.safe_dump({key: node[key] for key in ("title", "peak_tflops", "host", "grouped")}, sort_keys=False))
    print(f"wrote {path} and {TABLES / options.name}.json")
    return 0


if __name__ == "__main__":
    if not os.environ.keys() >= PROCESS_ENVIRONMENT.keys():  # memory is handed out as it is to ranks, from the start
        os.execve(sys.executable, [*sys.orig_argv], {**PROCESS_ENVIRONMENT, **os.environ})
    raise SystemExit(main())
