"""What will be measured, decided and written down before anything runs."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.schema import SCHEMA
from experiments.cells import Cell
from experiments.records import Config

QUALITY = "quality"  # the kind of panels of which nothing is timed (experiments.quality)
CORES = "core_flops_per_s"  # key of plan.json: what matched networks rest on, by core


@dataclass(frozen=True)
class Point:
    """One workload point of a panel: its place on the x axis and a resolved configuration per system.

    published_x is the value on the paper's axis that it stands for, published the figures of the paper it stands
    beside. kind: speedup, load, layers, sections or map, as which the panel is drawn, or quality. y: its place on the
    second axis of a panel that has one.
    """

    panel: str
    title: str
    kind: str
    published: tuple[str, ...]
    x_name: str
    x: Any
    published_x: Any
    configs: list[Config] = field(repr=False)
    y_name: str | None = None
    y: Any = None


@dataclass(frozen=True)
class Plan:
    """Cells by id, those launched together in the order of launching, and which point each belongs to."""

    cells: dict[str, Cell]
    launches: list[list[str]]
    document: dict[str, Any]


def make_plan(points: list[Point], command: Sequence[str] = (), rates: Mapping[str, float] | None = None) -> Plan:
    """All repetitions of all points; each repetition visits the points in its own seeded order.

    The experiment's twin is a system that is measured twice in every launch it has a part in: the A/A pairs.
    command: what was typed, for `resume`; rates: of this machine's cores, where networks were matched to them.
    Raises ValueError if there is no point.
    """
    if not points:
        raise ValueError(
            "the experiment has no points; give experiment.panels values, or run with -m and several values"
        )
    configs = [config for point in points for config in point.configs]
    config = next((one for one in configs if not one.is_simulated), configs[0])  # panels may be simulated beside it
    experiment, tier, seed = config.experiment, config.tier, config.seed
    cells: dict[str, Cell] = {}
    launches: list[list[str]] = []
    ids_of_point: list[list[str]] = [[] for _ in points]
    for launch in range(max(one.tier.launches for one in configs)):
        together: dict[str, list[str]] = {}
        for point, ids in zip(points, ids_of_point, strict=True):
            for cell in point_cells(point, launch):
                ids.append(cell.id)
                if cell.id not in cells:
                    # Nothing disturbs simulated cells: each is a launch, which ends when it is known.
                    together.setdefault(cell.id if cell.is_simulated else cell.launch_id, []).append(cell.id)
                cells[cell.id] = cell
        launches += _shuffled(together.values(), cells, random.Random(f"{seed}/{launch}"))
    document = {
        "schema": SCHEMA,
        "experiment": experiment.name,
        "campaign": f"{experiment.name}-{config.scale.name}-{tier.name}-seed{seed}",
        "scale": config.scale.name,
        "tier": tier.name,
        "baseline": experiment.baseline,
        "twin": None if config.is_simulated else experiment.twin,
        "seed": seed,
        "command": list(command),
        CORES: dict(rates or {}),
        "panels": _panels(points, ids_of_point),
        "launches": [{"id": cells[ids[0]].launch_id, "launch": cells[ids[0]].launch, "cells": ids} for ids in launches],
    }
    return Plan(cells, launches, document)


def _shuffled(launches: Iterable[list[str]], cells: Mapping[str, Cell], rng: random.Random) -> Iterator[list[str]]:
    """Launches in a random order in which those that differ in cluster, network or router only are neighbours.

    They are held against one another, so that the machine should be the same for them. Simulated ones come first, in
    their own order: they take seconds.
    """
    families: dict[str, list[list[str]]] = {}
    for ids in launches:
        if cells[ids[0]].is_simulated:
            yield ids
            continue
        shared = cells[ids[0]].shared.items()
        family = {key: value for key, value in shared if key not in ("cluster", "network", "router")}
        families.setdefault(json.dumps(family, sort_keys=True), []).append(ids)
    for family in rng.sample(list(families.values()), len(families)):
        yield from rng.sample(family, len(family))


def point_cells(point: Point, launch: int) -> Iterator[Cell]:
    """One cell per system, and the twin of the one that the experiment measures twice; none beyond its tier."""
    for config in point.configs:
        if launch >= config.tier.launches:
            continue
        yield Cell(config, launch)
        # A simulated run repeated is the same run.
        if config.system.name == config.experiment.twin and not config.is_simulated:
            yield Cell(config, launch, twin=True)


def _panels(points: list[Point], ids_of_point: list[list[str]]) -> list[dict[str, Any]]:
    panels: dict[str, dict[str, Any]] = {}
    for point, ids in zip(points, ids_of_point, strict=True):
        names = {"name": point.panel, "title": point.title, "kind": point.kind, "x_name": point.x_name}
        place = {"x": point.x, "published_x": point.published_x}
        if point.y_name is not None:
            names, place = names | {"y_name": point.y_name}, place | {"y": point.y}
        panel = panels.setdefault(point.panel, {**names, "published": list(point.published), "points": []})
        panel["points"].append({**place, "cells": ids})
    return list(panels.values())
