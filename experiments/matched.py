"""`network=matched`: the link of a device, slowed down as much as the device's layer is on this machine's core.

A layer has T sequences a rank, widths D and F, and numbers of b bytes; at P FLOP/s its experts take 4 T D F / P for
each place in the sequence, however many they are. Here they take `time` times as long as on the device, and what a rank
exchanges is `volume` times as many bytes:

    time = (T D F / P here) / (T D F / P there)        volume = (T D b here) / (T D b there)
    seconds here(volume x V) = time x seconds there(V)

so latencies are `time` times as long, and the bandwidth is
B there x (F there / F here) x (b here / b there) x (P here / P there):
R = 4 F B / (b P), the time of a row's products over that of its transfer, is the device's.
T here is the scale's batch, so that all batches of a sweep have one network.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from clusters.network import Network
from experiments import environment
from experiments.campaign import cache_dir
from experiments.ceilings import core_flops_per_s
from experiments.cells import check_precision
from experiments.configuration import instantiate
from experiments.plan import Point
from experiments.records import PRECISION, WHOLE, Config, Node
from experiments.values import check_record, check_value
from systems.engines.base import DTYPES

SECONDS = 0.5
SCALED = {"_target_", "name", "base_us", "hop_us", "points", "bandwidth_gbs", "source"}  # of a device's link
NO_NETWORK = Node(_target_="clusters.network.Network", name="none")


@dataclass(frozen=True)
class Layer:
    """The experts of an MoE layer and what computes them: FLOP/s of a large product."""

    batch_size: int = field(metadata=WHOLE)
    d_model: int = field(metadata=WHOLE)
    d_ff: int = field(metadata=WHOLE)
    precision: str = field(metadata=PRECISION)
    flops_per_s: float = field(metadata={"above": 0})

    @property
    def number_bytes(self) -> int:
        return DTYPES[self.precision].itemsize

    def ratio(self, bandwidth_gbs: float) -> float:
        """R: the time of a row's products over that of its transfer."""
        return 4 * self.d_ff * bandwidth_gbs * 1e9 / (self.number_bytes * self.flops_per_s)

    def times_as_long_as(self, other: "Layer") -> float:
        seconds, others = (one.batch_size * one.d_model * one.d_ff / one.flops_per_s for one in (self, other))
        return seconds / others

    def times_the_bytes_of(self, other: "Layer") -> float:
        volume, others = (one.batch_size * one.d_model * one.number_bytes for one in (self, other))
        return volume / others


def match_networks(points: Iterable[Point], rates: dict[str, float]) -> list[Point]:
    """The points with plain numbers in place of networks that are to match a device.

    rates: FLOP/s of this machine's core by what it depends on, where they are known; others are looked up in the cache
    folder, or measured, and added. Raises ValueError, in one sentence, for what cannot be matched.
    """
    return [replace(point, configs=[_matched(config, rates) for config in point.configs]) for point in points]


def _matched(config: Config, rates: dict[str, float]) -> Config:
    node, cluster = config.network, config.cluster
    if "devices" not in node:
        return config
    if cluster.kind != "emulated":  # real ranks have a network of their own
        return replace(config, network=NO_NETWORK)
    _check(config)
    title, there, link = _device(node)
    model, precision = config.model, config.precision
    flops_per_s = node["flops_per_s"] or _rate(precision, cluster.threads_per_rank, rates)
    here = Layer(config.scale.batch_size, model.d_model, model.d_ff, precision, flops_per_s)
    return replace(config, network=_slowed_down(link, here, there, node.name, title))


def _check(config: Config) -> None:
    """Refuse what would be measured in vain."""
    check_record(config)
    config.cluster.check()
    check_precision(config.precision, config.cluster.device)
    if config.cluster.device != "cpu":
        raise ValueError(
            "network=matched matches CPU cores only: at small widths a GPU's time is launches, not products; "
            "with cluster.device=cuda choose another network=, such as nvlink3"
        )
    check_value("network.flops_per_s", config.network["flops_per_s"], float | None, {"above": 0})


def _device(node: Node) -> tuple[str, Layer, dict[str, Any]]:
    """The title of the device to match, its layer and its link; ValueError where something is missing."""
    name, devices = node["device"], node["devices"]
    if name not in devices:
        raise ValueError(f"network.device is {name!r}; it must be one of {', '.join(devices)}")
    where = f"network.devices.{name}"
    values = {key: value for key, value in devices[name].items() if key not in ("title", "link")}
    try:
        title, layer, link = devices[name]["title"], Layer(**values), devices[name]["link"]
        instantiate(link, f"{where}.link")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where} is not complete: {error}") from error
    check_record(layer, f"{where}.")
    check_precision(layer.precision, "cuda")
    for key in link.keys() - SCALED:
        raise ValueError(f"{where}.link has {key!r}; only a link without tables can be matched")
    return title, layer, link


def _slowed_down(link: dict[str, Any], here: Layer, there: Layer, name: str, title: str) -> Node:
    time, volume = here.times_as_long_as(there), here.times_the_bytes_of(there)
    original: Network = instantiate(link, "network")
    bandwidth_gbs = _rounded(original.bandwidth_gbs * volume / time)
    core = f"this machine's core ({here.flops_per_s / 1e9:.3g} GFLOP/s, {here.precision}) : {bandwidth_gbs:.2g} GB/s"
    device = f"{title} ({there.flops_per_s / 1e12:.3g} TFLOP/s, {there.precision}) : {original.bandwidth_gbs:g} GB/s"
    return Node(
        _target_="clusters.network.Network",
        name=name,
        base_us=_rounded(original.base_us * time),
        hop_us=_rounded(original.hop_us * time),
        points=[[_rounded(size * volume), _rounded(us * time)] for size, us in original.points],
        bandwidth_gbs=bandwidth_gbs,
        source=f"{core} as {device} (R = {here.ratio(bandwidth_gbs):.2g})",
    )


def _rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def _rate(precision: str, threads: int, rates: dict[str, float]) -> float:
    """FLOP/s of a large product on this machine: known, in the cache folder, or measured and put there."""
    about = environment.identity()
    core = f"{about['cpu']}, torch {about['packages']['torch']}, {precision}, {threads} thread{'s' * (threads > 1)}"
    if core not in rates:
        rates[core] = _kept(cache_dir() / "cores.json", core, DTYPES[precision], threads)
    return rates[core]


def _kept(path: Path, core: str, dtype: torch.dtype, threads: int) -> float:
    """What the file has of this core, measured now if it has nothing; two commands do not measure at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        kept = json.loads(path.read_text()) if path.exists() else {}
        if core not in kept:
            kept[core] = _rounded(core_flops_per_s(dtype, threads, SECONDS), 2)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
                file.write(json.dumps(kept, indent=1))
            os.replace(file.name, path)
        return kept[core]
