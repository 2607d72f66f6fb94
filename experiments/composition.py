"""Configurations of what is typed: composed by Hydra, checked by the records, said in our words where refused."""

import json
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.records import Config, document, read
from experiments.refusals import refusal

# What cluster=simulated means where nothing else is asked for: the paper's layer on its GPUs, once.
SIMULATED = {"device": "a100_sxm", "network": "device", "tier": "once", "scale": "paper", "precision": "tf32"}
ON_THIS_MACHINE = ("scale", "precision")  # what device=here does not change


def schema() -> DictConfig:
    """The types of all keys, by which Hydra checks what it composes; records that are frozen can be filled in."""
    config = OmegaConf.structured(Config)
    OmegaConf.set_readonly(config, False)
    for name, kind in get_type_hints(Config).items():
        if is_dataclass(kind):
            config[name] = kind
            OmegaConf.set_readonly(config[name], False)
    return config


ConfigStore.instance().store("schema", schema())


def configuration(overrides: Sequence[str]) -> Config:
    """The configuration of what would be typed, for what runs no campaign; ValueError for what cannot be composed."""
    try:
        with hydra.initialize(version_base="1.3", config_path="../conf"):
            return resolved(hydra.compose("config", list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(refusal(f"{error}\n{error.__cause__}", known_keys)) from error


def known_keys() -> dict[str, Any]:
    """The keys that there are, of which a message names the nearest."""
    return document(configuration(["experiment=single"]))


@cache
def composed(overrides: tuple[str, ...], system: str | None) -> DictConfig:
    """The configuration of what was typed, for one system."""
    loader = GlobalHydra.instance().config_loader()
    chosen = [f"system={system}"] if system else []
    return loader.load_configuration("config", [*overrides, *chosen], run_mode=RunMode.RUN)


def league(overrides: tuple[str, ...]) -> list[str | None]:
    """The systems that declare themselves in the league, wherever configurations come from."""
    loader = GlobalHydra.instance().config_loader()
    names = loader.get_group_options("system", config_name="config", overrides=list(overrides))
    return [name for name in names if OmegaConf.select(composed(overrides, name), "system.about.league")]


def resolved(config: DictConfig) -> Config:
    """The record of a configuration, with no reference in it left open."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    container.pop("hydra", None)
    return read(Config, json.loads(json.dumps(container)))  # as it is stored: no whole numbers as keys


def with_implied(typed: list[str]) -> list[str]:
    """What was typed and, for simulated ranks, what that implies."""
    if "cluster=simulated" not in typed:
        return typed
    left_alone = {*keys_of(typed), *(ON_THIS_MACHINE if "device=here" in typed else ())}
    return typed + [f"{key}={value}" for key, value in SIMULATED.items() if key not in left_alone]


def keys_of(typed: Sequence[str]) -> set[str]:
    """The keys that are set by what is typed."""
    return {override.lstrip("+~").partition("=")[0] for override in typed}
