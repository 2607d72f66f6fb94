"""What will be measured, decided and written down before anything runs."""

import random
from dataclasses import dataclass, field
from typing import Any

from experiments.cells import Cell

SCHEMA = 1


@dataclass(frozen=True)
class Point:
    """One workload point of a panel: its place on the x axis and a resolved configuration per system.

    published_x is the value on the paper's axis that it stands for.
    """

    panel: str
    title: str
    x_name: str
    x: Any
    published_x: Any
    configs: list[dict[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class Plan:
    """Cells by id, those launched together in the order of launching, and which point each belongs to."""

    cells: dict[str, Cell]
    launches: list[list[str]]
    document: dict[str, Any]


def make_plan(points: list[Point]) -> Plan:
    """All repetitions of all points; each repetition visits the points in its own seeded order.

    Raises ValueError if there is no point.
    """
    if not points:
        raise ValueError(
            "the experiment has no points; give experiment.panels values, or run with -m and several values"
        )
    config = points[0].configs[0]
    experiment, tier, seed = config["experiment"], config["tier"], config["seed"]
    cells: dict[str, Cell] = {}
    launches: list[list[str]] = []
    ids_of_point: list[list[str]] = [[] for _ in points]
    for launch in range(tier["launches"]):
        together: dict[str, list[str]] = {}
        for point, ids in zip(points, ids_of_point, strict=True):
            for cell in (Cell(config, launch) for config in point.configs):
                ids.append(cell.id)
                if cell.id not in cells:
                    together.setdefault(cell.launch_id, []).append(cell.id)
                cells[cell.id] = cell
        repetition = list(together.values())
        random.Random(f"{seed}/{launch}").shuffle(repetition)
        launches += repetition
    document = {
        "schema": SCHEMA,
        "experiment": experiment["name"],
        "campaign": f"{experiment['name']}-{config['scale']['name']}-{tier['name']}-seed{seed}",
        "scale": config["scale"]["name"],
        "tier": tier["name"],
        "baseline": experiment["baseline"],
        "panels": _panels(points, ids_of_point),
        "launches": [{"id": cells[ids[0]].launch_id, "launch": cells[ids[0]].launch, "cells": ids} for ids in launches],
    }
    return Plan(cells, launches, document)


def _panels(points: list[Point], ids_of_point: list[list[str]]) -> list[dict[str, Any]]:
    panels: dict[str, dict[str, Any]] = {}
    for point, ids in zip(points, ids_of_point, strict=True):
        panel = panels.setdefault(
            point.panel, {"name": point.panel, "title": point.title, "x_name": point.x_name, "points": []}
        )
        panel["points"].append({"x": point.x, "published_x": point.published_x, "cells": ids})
    return list(panels.values())
