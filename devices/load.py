"""Described devices by name, for programs that compose no configuration."""

from pathlib import Path
from typing import Any

import yaml

from clusters.network import HierarchicalNetwork, Network
from devices.device import Device
from devices.parts import Host, how_to_describe

CONF = Path(__file__).parents[1] / "conf/device"


def load_device(name: str) -> Device:
    """The device of conf/device/NAME.yaml, without Hydra; ValueError names those there are."""
    nodes = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("*.yaml")}
    described = {one: node for one, node in nodes.items() if "_target_" in node}  # `none` describes none
    if name not in described:
        raise ValueError(f"there is no device {name}, only {', '.join(sorted(described))}; {how_to_describe(name)}")
    return _built(described[name])


def _built(value: Any) -> Any:
    """A node with the objects that its `_target_`s name."""
    if not isinstance(value, dict):
        return value
    parts = {key: _built(part) for key, part in value.items()}
    target = str(parts.pop("_target_", "")).rpartition(".")[2]
    kinds = {kind.__name__: kind for kind in (Device, Host, Network, HierarchicalNetwork)}
    return kinds[target](**parts) if target else parts
