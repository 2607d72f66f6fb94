"""`python -m experiments.run [experiment=...] [key=value ...] [-m]`: compose, plan, run, show.

Hydra lives in this file only. Its jobs are collected and the campaign runs after Hydra has finished, so that all jobs
of a multirun are one interleaved campaign.
"""

import contextlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from itertools import product
from typing import Any, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.main import BAD_INPUT, run_points
from experiments.plan import Point
from experiments.records import Config, document, read
from experiments.refusals import refusal


@dataclass(frozen=True)
class Job:
    """One job of Hydra: what was typed for it, and its points."""

    overrides: dict[str, str]
    config: DictConfig
    points: list[Point]


JOBS: list[Job] = []
# What cluster=simulated means where nothing else is asked for: the paper's layer on its GPUs, once.
SIMULATED = {"device": "a100_sxm", "network": "device", "tier": "once", "scale": "paper", "precision": "tf32"}
LEAGUE = ["league"]  # in the place of a panel's systems: all that are in it
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


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def compose(config: DictConfig) -> None:
    """Note one job; with a launcher that leaves this process (submitit, ray) run it there, in a folder of its own."""
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    multirun = settings.mode == RunMode.MULTIRUN
    stays_here = settings.launcher._target_.endswith("BasicLauncher")
    if multirun and config.experiment.name == "single":
        config.experiment.name = "sweep"
    leaves = multirun and not stays_here
    if leaves:
        config.out = f"{config.out}/{settings.job.num}"
    try:
        points = experiment_points(config, overrides)
    except ValueError as error:
        sys.exit(str(error))
    if leaves:
        sys.exit(run_points(points, overrides))
    pairs = [override.lstrip("+~").partition("=") for override in overrides]
    JOBS.append(Job({key: value for key, _, value in pairs}, config, points))


def experiment_points(config: DictConfig, typed: list[str]) -> list[Point]:
    """The points of every panel of the experiment, each with one configuration per system."""
    panels = {name: panel for name, panel in config.experiment.panels.items() if not _is_redundant(panel, typed)}
    return [point for name, panel in panels.items() for point in _panel_points(name, panel, config, typed)]


def _is_redundant(panel: DictConfig, typed: list[str]) -> bool:
    """Whether a pinned panel's cluster is the one that was typed, or cannot be had inside a launch of torchrun."""
    clusters = [one for one in panel.pinned if one.startswith("cluster=")]
    return bool(panel.pinned) and ("cluster=torchrun" in typed or any(one in typed for one in clusters))


def _panel_points(name: str, panel: DictConfig, config: DictConfig, typed: list[str]) -> list[Point]:
    typed = _with_pinned(panel, typed)
    if panel.pinned:  # its axes are those of the scale that is pinned
        panel = _compose(tuple(typed), None).experiment.panels[name]
    overrides = tuple(_panel_overrides(panel, typed))
    cells = [_without_panels(_compose(overrides, system)) for system in _systems(config, panel, overrides)]
    y_axis = _axis(panel.y, panel.y_values, panel.y_divide_by, config, typed) if panel.y else [(None, None)]
    x_axis = _axis(panel.x, panel["values"], panel.divide_by, config, typed)
    points = []
    for (_, y), (value, x) in product(y_axis, x_axis):
        at = {panel.x: x} | ({panel.y: y} if panel.y else {})
        engines = {} if "engine" in _keys(typed) else panel.engines
        configs = [_placed(cell, at, config, engines, several=len(cells) > 1) for cell in cells]
        published = tuple(panel.published) if value is not None else ()
        place = (_last(panel.x), x, value if published else None)
        points.append(Point(name, panel.title, panel.kind, published, *place, configs, panel.y and _last(panel.y), y))
    return points


def _without_panels(config: DictConfig) -> DictConfig:
    """A configuration without what no cell has: copying and resolving that for every point would take minutes."""
    kept = {key: value for key, value in config.items_ex(resolve=False) if key != "hydra"}
    config = OmegaConf.create(kept, flags={"struct": True})
    config.experiment.panels = {}
    return config


def _axis(
    key: str, values: Sequence[Any] | None, divide_by: float | None, config: DictConfig, typed: list[str]
) -> list[tuple[Any, Any]]:
    """The values of a panel's axis, each with what this scale makes of it; what was typed is the one value."""
    if key in _keys(typed) or not values:
        return [(None, OmegaConf.select(config, key))]
    return [(value, max(1, round(value / divide_by)) if divide_by else value) for value in values]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _placed(
    cell: DictConfig, at: dict[str, Any], config: DictConfig, engines: Mapping[str, str], *, several: bool
) -> Config:
    """One system's resolved configuration at the point where the keys have these values.

    engines: those that the panel gives to some systems, by name.
    """
    cell = cell.copy()
    cell.engine = engines.get(cell.system.name, cell.engine)
    if several and cell.system.engine is None:
        cell.engine = None  # engine= is for the systems that take one
    for key, value in at.items():
        OmegaConf.update(cell, key, value)
    cell.experiment.name, cell.out = config.experiment.name, config.out
    return _resolved(cell)


def _systems(config: DictConfig, panel: DictConfig, overrides: tuple[str, ...]) -> list[str | None]:
    """The panel's systems, unless the command line names others; None is the composed one."""
    if any(override.startswith("system=") for override in overrides):
        return [None]
    chosen = config.experiment.systems or panel.systems or [None]
    return _league(overrides) if chosen == LEAGUE else list(chosen)


def _league(overrides: tuple[str, ...]) -> list[str | None]:
    """The systems that declare themselves in the league, wherever configurations come from."""
    loader = GlobalHydra.instance().config_loader()
    names = loader.get_group_options("system", config_name="config", overrides=list(overrides))
    return [name for name in names if OmegaConf.select(_compose(overrides, name), "system.about.league")]


def _panel_overrides(panel: DictConfig, typed: list[str]) -> list[str]:
    """What was typed, after those of the panel's own overrides whose key was not typed."""
    return [own for own in panel.overrides if own.partition("=")[0] not in _keys(typed)] + typed


def _with_pinned(panel: DictConfig, typed: list[str]) -> list[str]:
    """What was typed, less what sets a pinned key or a part of one, and what is pinned."""
    pinned = list(panel.pinned)
    settled = _keys(pinned)
    left = [one for one in typed if next(iter(_keys([one]))).partition(".")[0] not in settled]
    return left + pinned


def _keys(typed: list[str]) -> set[str]:
    return {override.lstrip("+~").partition("=")[0] for override in typed}


@cache
def _compose(overrides: tuple[str, ...], system: str | None) -> DictConfig:
    """The configuration of what was typed, for one system."""
    loader = GlobalHydra.instance().config_loader()
    chosen = [f"system={system}"] if system else []
    return loader.load_configuration("config", [*overrides, *chosen], run_mode=RunMode.RUN)


def configuration(overrides: Sequence[str]) -> Config:
    """The configuration of what would be typed, for what runs no campaign; ValueError for what cannot be composed."""
    try:
        with hydra.initialize(version_base="1.3", config_path="../conf"):
            return _resolved(hydra.compose("config", list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(refusal(f"{error}\n{error.__cause__}", known_keys)) from error


def known_keys() -> dict[str, Any]:
    """The keys that there are, of which a message names the nearest."""
    return document(configuration(["experiment=single"]))


def sweep_points(jobs: list[Job]) -> list[Point]:
    """The jobs of a multirun as panels; jobs that differ in their system only share a point.

    Single points are put on an x axis, the numeric key with most values; each mix of the other keys is a panel.
    """
    values = {key: {job.overrides.get(key, "") for job in jobs} for job in jobs for key in job.overrides}
    varied = {key: found for key, found in values.items() if len(found) > 1 and key != "system"}
    x_key = _x_key(varied) if jobs[0].config.experiment.name == "sweep" else None
    points: dict[tuple[Any, ...], Point] = {}
    for job in jobs:
        others = [f"{key}={job.overrides[key]}" for key in sorted(varied) if key != x_key]
        for point in job.points:
            panel = "_".join(["sweep" if x_key else point.panel, *others]).replace("/", "-")
            x = OmegaConf.select(job.config, x_key) if x_key else point.x
            x_name = _last(x_key) if x_key else point.x_name
            title = ", ".join(others) or panel
            y = (None, None) if x_key else (point.y_name, point.y)
            new = Point(panel, title, point.kind, (), x_name, x, None, [], *y)
            merged = points.setdefault((panel, x, *y), new)
            merged.configs.extend(point.configs)
    return list(points.values())


def _x_key(varied: dict[str, set[str]]) -> str:
    numeric = {key: len(found) for key, found in varied.items() if all(_is_number(value) for value in found)}
    return max(numeric, key=lambda key: numeric[key], default="model.num_experts")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _resolved(config: DictConfig) -> Config:
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    container.pop("hydra", None)
    return read(Config, json.loads(json.dumps(container)))  # as it is stored: no whole numbers as keys


def with_implied(typed: list[str]) -> list[str]:
    """What was typed and, for simulated ranks, what that implies."""
    if "cluster=simulated" not in typed:
        return typed
    left_alone = {*_keys(typed), *(ON_THIS_MACHINE if "device=here" in typed else ())}
    return typed + [f"{key}={value}" for key, value in SIMULATED.items() if key not in left_alone]


def _compose_or_exit() -> None:
    """Run Hydra's jobs; what it refuses (unknown names and keys) is said in one sentence, with exit status 2."""
    said = io.StringIO()
    sys.argv[1:] = with_implied(sys.argv[1:])
    try:
        with contextlib.redirect_stderr(said):
            compose()
    except SystemExit as ended:
        if ended.code == 0:
            raise
        GlobalHydra.instance().clear()
        told = ended.code if isinstance(ended.code, str) else said.getvalue()
        print(f"error: {refusal(told, known_keys)}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    _compose_or_exit()
    sys.exit(run_points(JOBS[0].points if len(JOBS) == 1 else sweep_points(JOBS), sys.argv[1:]))
