"""`python -m experiments.run [experiment=...] [key=value ...] [-m]`: compose, plan, run, show.

Hydra lives in this file only. Its jobs are collected and the campaign runs after Hydra has finished, so that all jobs
of a multirun are one interleaved campaign.
"""

import contextlib
import io
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.main import BAD_INPUT, run_points
from experiments.plan import Point


@dataclass(frozen=True)
class Job:
    """One job of Hydra: what was typed for it, and its points."""

    overrides: dict[str, str]
    config: DictConfig
    points: list[Point]


JOBS: list[Job] = []


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def compose(config: DictConfig) -> None:
    """Note one job; with a launcher that leaves this process (submitit, ray) run it there, in a folder of its own."""
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    multirun = settings.mode == RunMode.MULTIRUN
    stays_here = settings.launcher._target_.endswith("BasicLauncher")
    if multirun and config.experiment.name == "single":
        config.experiment.name = "sweep"
    if multirun and not stays_here:
        config.out = f"{config.out}/{settings.job.num}"
        sys.exit(run_points(experiment_points(config, overrides), overrides))
    typed = dict(override.lstrip("+").split("=", 1) for override in overrides)
    JOBS.append(Job(typed, config, experiment_points(config, overrides)))


def experiment_points(config: DictConfig, typed: list[str]) -> list[Point]:
    """The points of every panel of the experiment, each with one configuration per system."""
    return [
        point for name, panel in config.experiment.panels.items() for point in _panel_points(name, panel, config, typed)
    ]


def _panel_points(name: str, panel: DictConfig, config: DictConfig, typed: list[str]) -> list[Point]:
    cells = [_compose(tuple(_panel_overrides(panel, typed)), system) for system in _systems(config, panel, typed)]
    keys = {override.lstrip("+").partition("=")[0] for override in typed}
    values = None if panel.x in keys else panel["values"]  # what was typed is the one point
    points = []
    for value in values or [OmegaConf.select(config, panel.x)]:
        x = max(1, round(value / panel.divide_by)) if values and panel.get("divide_by") else value
        configs = []
        for cell in (cell.copy() for cell in cells):
            if len(cells) > 1 and cell.system.engine is None:
                cell.engine = None  # engine= is for the systems that take one
            OmegaConf.update(cell, panel.x, x)
            cell.experiment.name, cell.out = config.experiment.name, config.out
            configs.append(_resolved(cell))
        published = tuple(panel.published) if values else ()
        place = (panel.x.rpartition(".")[2], x, value if published else None)
        points.append(Point(name, panel.title, panel.kind, published, *place, configs))
    return points


def _systems(config: DictConfig, panel: DictConfig, typed: list[str]) -> list[str | None]:
    """The panel's systems, unless the command line names others; None is the composed one."""
    if any(override.startswith("system=") for override in typed):
        return [None]
    return list(config.experiment.systems or panel.systems or [None])


def _panel_overrides(panel: DictConfig, typed: list[str]) -> list[str]:
    """What was typed, after those of the panel's own overrides whose key was not typed."""
    keys = {override.lstrip("+~").partition("=")[0] for override in typed}
    return [own for own in panel.overrides if own.partition("=")[0] not in keys] + typed


@cache
def _compose(overrides: tuple[str, ...], system: str | None) -> DictConfig:
    """The configuration of what was typed, for one system."""
    loader = GlobalHydra.instance().config_loader()
    chosen = [f"system={system}"] if system else []
    return loader.load_configuration("config", [*overrides, *chosen], run_mode=RunMode.RUN)


def sweep_points(jobs: list[Job]) -> list[Point]:
    """The jobs of a multirun as panels; jobs that differ in their system only share a point.

    Single points are put on an x axis, the numeric key with most values; each mix of the other keys is a panel.
    """
    values = {key: {job.overrides.get(key, "") for job in jobs} for job in jobs for key in job.overrides}
    varied = {key: found for key, found in values.items() if len(found) > 1 and key != "system"}
    x_key = _x_key(varied) if jobs[0].config.experiment.name == "sweep" else None
    points: dict[tuple[str, Any], Point] = {}
    for job in jobs:
        others = [f"{key}={job.overrides[key]}" for key in sorted(varied) if key != x_key]
        for point in job.points:
            panel = "_".join(["sweep" if x_key else point.panel, *others]).replace("/", "-")
            x = OmegaConf.select(job.config, x_key) if x_key else point.x
            x_name = x_key.rpartition(".")[2] if x_key else point.x_name
            title = ", ".join(others) or panel
            merged = points.setdefault((panel, x), Point(panel, title, point.kind, (), x_name, x, None, []))
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


def _resolved(config: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items() if key != "hydra"}


def _compose_or_exit() -> None:
    """Run Hydra's jobs; what it refuses (unknown names and keys) is said in one sentence, with exit status 2."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            compose()
    except SystemExit as refusal:
        if refusal.code == 0:
            raise
        lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
        unread = ("To append to", "Config search path", "provider=", "Set the environment", "full_key", "object_type")
        told = [line for line in lines if not line.startswith(unread)]
        print(f"error: {' '.join(told)}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    _compose_or_exit()
    sys.exit(run_points(JOBS[0].points if len(JOBS) == 1 else sweep_points(JOBS), sys.argv[1:]))
