"""Reads a checkout of the authors' repository, sacs-epfl/moe-inference, and recomputes what the paper shows.

Layout: outputs/<kind>/<run>/data.json, and in <run>/<GPU>/ e2e.csv (iteration, latency in s: forward passes) and
moe_l<block>.csv (iteration, latency in ms). What a run was is taken from its data.json, never from its name.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

ENGINES = {"sliced_fused_kernel": ("moeshard", "megablocks"), "manual_sliced": ("moeshard", "loop")}
BASELINE = ("deepspeed", "deepspeed")  # its driver writes no expert_manager
FIRST = 4  # their plots leave iterations 0 to 3 out
# Columns of paper_runs.csv and what data.json calls them.
WORKLOAD = {"num_experts": "num_experts", "batch_size": "batch_size", "seq_len": "seq_len", "world_size": "world_size"}
SKEW = {"alpha_r": "router_skew", "k_r": "num_experts_skew"}


@dataclass(frozen=True)
class AuthorsRun:
    """One run: what data.json says, and milliseconds [I, G] of whole passes and of each encoder block's MoE layer."""

    folder: Path
    settings: dict
    ttft_IG: np.ndarray
    layer_IG: dict[int, np.ndarray]

    @property
    def series(self) -> tuple[str, str]:
        """Our (system, engine) of the run."""
        return ENGINES.get(self.settings.get("expert_manager", ""), BASELINE)

    def layer_means(self) -> dict[int, float]:
        """The paper's: over GPUs and iterations."""
        return {layer: float(ms_IG[FIRST:].mean()) for layer, ms_IG in self.layer_IG.items()}

    def ttft_median(self) -> float:
        """Ours: the slowest GPU of each iteration."""
        return float(np.median(self.ttft_IG.max(axis=1)))


def find_runs(checkout: Path) -> list[Path]:
    """Folders of the runs; ValueError when there is none."""
    folders = sorted(path.parent for path in checkout.glob("outputs/*/*/data.json"))
    if not folders:
        raise ValueError(f"{checkout} is not a checkout of sacs-epfl/moe-inference: it has no outputs/*/*/data.json.")
    return folders


def matching_run(folders: dict[Path, dict], row: dict) -> AuthorsRun:
    """The run behind a row of paper_runs.csv; ValueError when the checkout lacks it."""
    wanted = {theirs: row[ours] for ours, theirs in (WORKLOAD | SKEW).items()}
    wanted |= {"model_type": "encoder", "enable_router_skew": True, "random_router_skew": False}
    if row["system"] == "deepspeed":
        wanted["capacity_factor"] = row["capacity_factor"]
    found = [
        folder
        for folder, settings in folders.items()
        if all(settings.get(key) == value for key, value in wanted.items())
        and ENGINES.get(settings.get("expert_manager", ""), BASELINE) == (row["system"], row["engine"])
    ]
    if not found:
        what = f"{row['system']} ({row['engine']}), {row['num_experts']} experts, batch {row['batch_size']}"
        raise ValueError(f"The checkout has no run of {what}.")
    return read_run(min(found, key=lambda folder: len(folder.name)), folders)


def read_settings(checkout: Path) -> dict[Path, dict]:
    """data.json of every run, by folder; ValueError when there is none."""
    return {folder: json.loads((folder / "data.json").read_text()) for folder in find_runs(checkout)}


def read_run(folder: Path, folders: dict[Path, dict]) -> AuthorsRun:
    """A run with the times of its GPUs; the authors wrote e2e.csv in seconds and moe_l*.csv in milliseconds."""
    gpus = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    blocks = {path.name[5:-4] for gpu in gpus for path in gpu.glob("moe_l*.csv")}
    layers = sorted(int(block) for block in blocks if block.isdigit())  # moe_l1_decode.csv is the decoder's
    layer_IG = {layer: latencies([gpu / f"moe_l{layer}.csv" for gpu in gpus]) for layer in layers}
    return AuthorsRun(folder, folders[folder], 1e3 * latencies([gpu / "e2e.csv" for gpu in gpus]), layer_IG)


def latencies(paths: list[Path]) -> np.ndarray:
    """The column that is called latency, in whatever case and unit, of one file a GPU: [I, G]."""
    columns = []
    for path in paths:
        frame = pd.read_csv(path).sort_values("iteration")
        name = next(name for name in frame.columns if name.lower().startswith("latency"))
        columns.append(frame[name].to_numpy())
    return np.stack(columns, axis=1)


def recompute(checkout: Path, figures: pd.DataFrame, runs: pd.DataFrame, behind) -> pd.DataFrame:
    """Every point of the figures from raw data: columns of `figures`, then `recomputed_layer`, `recomputed_ttft`.

    figures, runs: paper_figures.csv and paper_runs.csv. behind: names the two rows of `runs` behind a point.
    """
    folders = read_settings(checkout)
    rows = []
    for point in figures.to_dict("records"):
        baseline, system = (matching_run(folders, dict(run)) for run in behind(runs, point))
        below = system.layer_means()
        ratios = [ms / below[layer] for layer, ms in baseline.layer_means().items()]
        ttft = baseline.ttft_median() / system.ttft_median()
        rows.append(point | {"recomputed_layer": float(np.mean(ratios)), "recomputed_ttft": ttft})
    return pd.DataFrame(rows)


def learned_layers(checkout: Path) -> list[tuple[str, str, float, float]]:
    """Section 4.2: engine, model type, shortest and longest mean layer of runs with the learned router, E = 128."""
    wanted = {"enable_router_skew": False, "num_experts": 128, "batch_size": 250, "world_size": 4}
    folders = read_settings(checkout)
    found = [folder for folder, settings in folders.items() if wanted.items() <= settings.items()]
    rows = []
    for run in (read_run(folder, folders) for folder in found):
        means = run.layer_means().values()
        rows.append((run.series[1], run.settings["model_type"], min(means), max(means)))
    return rows
