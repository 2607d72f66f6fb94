"""`python -m experiments.run [experiment=...] [key=value ...] [-m]`: compose, plan, run, show.

Hydra lives in this file only. Its jobs are collected and the campaign runs after Hydra has finished, so that all jobs
of a multirun are one interleaved campaign.
"""

import contextlib
import io
import sys
from dataclasses import dataclass
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
        sys.exit(run_points(experiment_points(config, overrides)))
    typed = dict(override.lstrip("+").split("=", 1) for override in overrides)
    JOBS.append(Job(typed, config, experiment_points(config, overrides)))


def experiment_points(config: DictConfig, overrides: list[str]) -> list[Point]:
    """The points of every panel of the experiment, each with one configuration per system."""
    systems = _systems(config, overrides)
    points = []
    for panel in config.experiment.panels:
        for value in panel["values"] or [OmegaConf.select(config, panel.x)]:
            x = max(1, round(value / panel.divide_by)) if panel.get("divide_by") else value
            configs = []
            for system in systems:
                cell = config.copy()
                cell.system = system
                if len(systems) > 1 and system.engine is None:
                    cell.engine = None  # engine= is for the systems that take one
                OmegaConf.update(cell, panel.x, x)
                configs.append(_resolved(cell))
            published = value if panel.get("published") else None
            points.append(Point(panel.name, panel.title, panel.x.rpartition(".")[2], x, published, configs))
    return points


def _systems(config: DictConfig, overrides: list[str]) -> list[Any]:
    """The experiment's systems, unless the command line names one."""
    if config.experiment.systems is None or any(override.startswith("system=") for override in overrides):
        return [config.system]
    loader = GlobalHydra.instance().config_loader()
    return [
        loader.load_configuration("config", [*overrides, f"system={name}"], run_mode=RunMode.RUN).system
        for name in config.experiment.systems
    ]


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
            merged = points.setdefault((panel, x), Point(panel, ", ".join(others) or panel, x_name, x, None, []))
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
    sys.exit(run_points(JOBS[0].points if len(JOBS) == 1 else sweep_points(JOBS)))
