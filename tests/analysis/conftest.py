"""A small synthetic campaign in the stored schema, with medians that are known in advance."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.load import load_campaign
from analysis.summary import summarise

WORLD_SIZE = 4
LAYERS = (1, 3)
# The last rank is the slowest; a mean over ranks would give 0.7 of it.
RANK_G = np.array([0.4, 0.6, 0.8, 1.0])
WRONG_MS = 1e6  # what warm-up and instrumented rows hold: one of them in a statistic would show


def sample_rows(
    cell: str, launch: int, phase: str, values: dict[str, float], iterations: int, noise: float, source: str
) -> list[dict]:
    """Rows of one phase; iteration i is (1 + offset_i) times the given median, offsets symmetric about zero."""
    offset_I = noise * np.linspace(-1, 1, iterations)
    rows = []
    for metric, value in values.items():
        unit = "ms" if metric.endswith("_ms") else "tokens" if metric == "dropped" else "rows"
        for layer in [None] if metric == "ttft_ms" else LAYERS:
            for i in range(iterations):
                for rank in range(WORLD_SIZE):
                    seen = value * (1 + offset_I[i]) * RANK_G[rank] if unit == "ms" else value * (rank + 1)
                    rows.append(
                        {
                            "iteration": i,
                            "rank": rank,
                            "metric": metric,
                            "layer": layer,
                            "value": float(seen),
                            "unit": unit,
                        }
                        | {"phase": phase, "order": len(rows)}
                    )
    shared = {
        "campaign": "c1",
        "cell": cell,
        "launch": launch,
        "section": None,
        "time": 0.0,
        "source": source,
        "schema": 1,
    }
    return [row | shared for row in rows]


def write_cell(folder: Path, cell: str, spec: dict) -> None:
    """One cell's run.json and, in state ok, samples.parquet."""
    spec = {"state": "ok", "reason": None, "engine": "grouped", "precision": "ieee", "source": "emulated"} | spec
    target = folder / "cells" / cell
    target.mkdir(parents=True)
    check = {"relative_error": 1e-6, "tolerance": 1e-4, "passed": True}
    run = {
        "schema": 1,
        "cell": cell,
        "campaign": "c1",
        "traceback": None,
        "launch": 0,
        "tier": "quick",
        "correctness": check,
    }
    run |= {
        "config": {"cluster": {"kind": "emulated", "device": "cpu"}, "network": {"name": "nvlink3"}},
        "seed": 0,
        "environment": {},
    }
    run |= {key: spec[key] for key in spec if key not in ("values", "iterations", "noise")}
    (target / "run.json").write_text(json.dumps(run))
    if spec["state"] != "ok":
        return
    rows = sample_rows(
        cell,
        run["launch"],
        "measure",
        spec["values"],
        spec.get("iterations", 5),
        spec.get("noise", 0.02),
        spec["source"],
    )
    wrong = dict.fromkeys(spec["values"], WRONG_MS)
    for phase in ("warmup", "sections"):
        rows += sample_rows(cell, run["launch"], phase, wrong, 1, 0, spec["source"])
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "section": "string"})
    frame.to_parquet(target / "samples.parquet")


def write_plan(folder: Path, panels: list[dict], baseline: str | None = "deepspeed") -> None:
    plan = {
        "schema": 1,
        "experiment": folder.name,
        "campaign": "c1",
        "scale": "laptop",
        "tier": "quick",
        "baseline": baseline,
    }
    (folder / "plan.json").write_text(json.dumps(plan | {"panels": panels, "launches": []}))


def point(num_experts: int = 128, batch_size: int = 25) -> dict:
    return {"num_experts": num_experts, "batch_size": batch_size, "seq_len": 120, "world_size": WORLD_SIZE}


def write_fig3(folder: Path, experts=(8, 64, 256), batches=(1, 10), launches: int = 2, **changes: dict) -> Path:
    """A campaign with the two panels of Figure 3; `changes` overrides a cell's spec by cell id.

    Medians: DeepSpeed 400 ms TTFT and 60 ms a layer; MoEShard's are those over `gain` (layer) and half of it (TTFT).
    """
    gain = {8: 2.0, 64: 6.0, 256: 3.0, 1: 0.5, 10: 2.0}
    folder.mkdir(parents=True, exist_ok=True)
    panels = [
        {"name": "fig3a", "title": "Figure 3a", "x_name": "num_experts", "points": []},
        {"name": "fig3b", "title": "Figure 3b", "x_name": "batch_size", "points": []},
    ]
    for panel, xs in zip(panels, (experts, batches), strict=True):
        for x in xs:
            cells = []
            for launch in range(launches):
                for system, factor in (("deepspeed", 1.0), ("moeshard", gain[x])):
                    cell = f"{system}_{panel['x_name']}_{x}_{launch}"
                    values = {
                        "ttft_ms": 400 / max(factor / 2, 0.5) if system == "moeshard" else 400,
                        "layer_moe_ms": 60 / factor,
                    }
                    values |= {
                        "rows_computed": 30.0,
                        "rows_useful": 10.0,
                        "dropped": 1.0 if system == "deepspeed" else 0.0,
                    }
                    where = point(num_experts=x) if panel is panels[0] else point(batch_size=x)
                    spec = {"system": system, "point": where, "launch": launch, "values": values}
                    spec |= {"engine": "deepspeed"} if system == "deepspeed" else {}
                    if changes.get(cell) is not None:
                        write_cell(folder, cell, spec | changes[cell])
                    elif cell not in changes:
                        write_cell(folder, cell, spec)
                    cells.append(cell)
            published_x = x if panel is panels[0] else 10 * x
            panel["points"].append({"x": x, "published_x": published_x, "cells": cells})
    write_plan(folder, panels)
    return folder


@pytest.fixture(scope="session")
def summary(tmp_path_factory):
    """The summary of the whole campaign, nothing changed."""
    return summarise(load_campaign(write_fig3(tmp_path_factory.mktemp("results") / "fig3")))


@pytest.fixture
def fig3(tmp_path):
    """Writes the campaign: fig3(**changes) -> folder; a change of None leaves the cell out, as one that has not run."""
    return lambda **options: write_fig3(tmp_path / "fig3", **options)


@pytest.fixture
def store():
    """The writers themselves, for campaigns of another shape."""
    return write_cell, write_plan, point
