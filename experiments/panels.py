"""From what is typed to points: each panel of an experiment taken apart, and the jobs of a multirun put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.composition import composed, keys_of, league, resolved
from experiments.plan import Point
from experiments.records import Config

LEAGUE = ["league"]  # in the place of a panel's systems: all that are in it


@dataclass(frozen=True)
class Job:
    """One job of Hydra: what was typed for it, and its points."""

    overrides: dict[str, str]
    config: DictConfig
    points: list[Point]


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
        panel = composed(tuple(typed), None).experiment.panels[name]
    overrides = tuple(_panel_overrides(panel, typed))
    cells = [_without_panels(composed(overrides, system)) for system in _systems(config, panel, overrides)]
    y_axis = _axis(panel.y, panel.y_values, panel.y_divide_by, config, typed) if panel.y else [(None, None)]
    x_axis = _axis(panel.x, panel["values"], panel.divide_by, config, typed)
    points = []
    for (_, y), (value, x) in product(y_axis, x_axis):
        at = {panel.x: x} | ({panel.y: y} if panel.y else {})
        engines = {} if "engine" in keys_of(typed) else panel.engines
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
    if key in keys_of(typed) or not values:
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
    return resolved(cell)


def _systems(config: DictConfig, panel: DictConfig, overrides: tuple[str, ...]) -> list[str | None]:
    """The panel's systems, unless the command line names others; None is the composed one."""
    if any(override.startswith("system=") for override in overrides):
        return [None]
    chosen = config.experiment.systems or panel.systems or [None]
    return league(overrides) if chosen == LEAGUE else list(chosen)


def _panel_overrides(panel: DictConfig, typed: list[str]) -> list[str]:
    """What was typed, after those of the panel's own overrides whose key was not typed."""
    return [own for own in panel.overrides if own.partition("=")[0] not in keys_of(typed)] + typed


def _with_pinned(panel: DictConfig, typed: list[str]) -> list[str]:
    """What was typed, less what sets a pinned key or a part of one, and what is pinned."""
    pinned = list(panel.pinned)
    settled = keys_of(pinned)
    left = [one for one in typed if next(iter(keys_of([one]))).partition(".")[0] not in settled]
    return left + pinned


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
