"""Network models by name, outside Hydra: conf/network/<name>.yaml, or the document that a cell was stored with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clusters.network import HierarchicalNetwork, Network, NetworkModel

CAMPAIGNS = "matched"  # what a campaign works out for its machine: stored with its cells, in no file
FOLDER = Path(__file__).parents[1] / "conf" / "network"
KINDS: dict[str, Any] = {f"{kind.__module__}.{kind.__name__}": kind for kind in (Network, HierarchicalNetwork)}


class Stretched:
    """A network whose every collective takes `factor` times as long.

    What ranks that compute `factor` times as slowly as a GPU need, so that transfers and computation are in the
    proportion that they have on it.
    """

    def __init__(self, network: NetworkModel, factor: float) -> None:
        self.network, self.factor = network, factor
        self.name = f"{network.name} ({factor:.3g} times as slow)"

    def when(self, collective: str, ranks: int, spread_s: float) -> "Stretched":
        return Stretched(self.network.when(collective, ranks, spread_s / self.factor), self.factor)

    def volumes(self, collective: str, sent_GG: np.ndarray, members: Sequence[int]) -> tuple[float, ...]:
        return self.network.volumes(collective, sent_GG, members)

    def seconds(self, collective: str, volumes: Sequence[float], ranks: int) -> float:
        return self.factor * self.network.seconds(collective, volumes, ranks)


def load_network(name: str) -> NetworkModel:
    """conf/network/<name>.yaml as a model; ValueError naming those that are there."""
    known = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != CAMPAIGNS)
    if name not in known:
        raise ValueError(f"there is no network {name!r}; conf/network has {', '.join(known)}")
    return build_network(read(name))


def read(name: str) -> dict[str, Any]:
    """The document of one file, with the networks that its defaults list puts into it."""
    document = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    for default in document.pop("defaults", []):
        if isinstance(default, dict):
            ((group, inner),) = default.items()
            document[group.partition("@")[2]] = read(inner)
    return document


def build_network(document: dict[str, Any]) -> NetworkModel:
    """The model of a configuration; only the network models of this project are built, whatever the document names."""
    target = document.get("_target_", "")
    if target not in KINDS:
        raise ValueError(f"network _target_ is {target!r}; it must be one of {', '.join(KINDS)}")
    values = {key: value for key, value in document.items() if key != "_target_"}
    return KINDS[target](**{key: build_network(v) if is_network(v) else v for key, v in values.items()})


def is_network(value: object) -> bool:
    """Whether a value of a configuration is a nested network."""
    return isinstance(value, dict) and "_target_" in value
