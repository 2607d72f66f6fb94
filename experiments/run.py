"""`python -m experiments.run [experiment=...] [key=value ...] [-m]`: compose, plan, run, show.

Hydra lives in this file only. Its job collects configurations; the campaign runs after Hydra has finished, so that
all jobs of a multirun are one interleaved campaign.
"""

import sys
from itertools import groupby
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.main import run_points
from experiments.plan import Point

COLLECTED: list[tuple[list[str], DictConfig]] = []


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def compose(config: DictConfig) -> None:
    """Note one job's configuration; with a launcher that leaves this process (submitit, ray) run it there instead."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN and not settings.launcher._target_.endswith("BasicLauncher"):
        sys.exit(run_points(experiment_points(config, list(settings.overrides.task))))
    if settings.mode == RunMode.MULTIRUN:
        COLLECTED.append((list(settings.overrides.task), config))
    else:
        POINTS.extend(experiment_points(config, list(settings.overrides.task)))


POINTS: list[Point] = []


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


def sweep_points(jobs: list[tuple[list[str], DictConfig]]) -> list[Point]:
    """The jobs of a multirun as panels: x is the numeric key with most values; each mix of the others is a panel."""
    values: dict[str, list[str]] = {}
    parsed = [dict(override.lstrip("+").split("=", 1) for override in overrides) for overrides, _ in jobs]
    for job in parsed:
        for key, value in job.items():
            values.setdefault(key, []).append(value)
    varied = {key: set(found) for key, found in values.items() if len(set(found)) > 1 and key != "system"}
    numeric = {key: len(found) for key, found in varied.items() if all(_is_number(value) for value in found)}
    x_key = max(numeric, key=lambda key: numeric[key]) if numeric else "model.num_experts"
    points: list[Point] = []
    described = [
        (_others(job, varied, x_key), OmegaConf.select(config, x_key), config)
        for job, (_, config) in zip(parsed, jobs, strict=True)
    ]
    for (others, x), same in groupby(sorted(described, key=lambda item: item[:2]), key=lambda item: item[:2]):
        name = "_".join(["sweep", *others]).replace("/", "-")
        title = ", ".join(others) or "sweep"
        points.append(
            Point(name, title, x_key.rpartition(".")[2], x, None, [_resolved(config) for _, _, config in same])
        )
    return points


def _others(job: dict[str, str], varied: dict[str, set[str]], x_key: str) -> tuple[str, ...]:
    return tuple(f"{key}={job[key]}" for key in sorted(varied) if key != x_key and key in job)


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


if __name__ == "__main__":
    compose()
    sys.exit(run_points(sweep_points(COLLECTED) if COLLECTED else POINTS))
