"""Campaigns of simulated ranks: a map, a line of ranks, and cells that fail."""

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.files import read_runs
from clusters.launch import LaunchFailed
from experiments.records import Launch
from experiments.simulate import launch_simulation
from tests.experiments.tiny import TINY, configuration, run

SIMULATED = ["cluster=simulated", "device=a100_sxm", *(one for one in TINY if one.startswith(("model", "seq")))]
MAP = "map_imbalance_batch"


def states(folder: Path) -> dict[tuple[str, int], str]:
    runs = read_runs(folder).values()
    return {(run["system"], run["point"]["world_size"]): run["state"] for run in runs}


def test_a_map_is_simulated_in_processes_of_its_own_and_drawn(tmp_path):
    axes = {"values": "[1.0,2.0]", "y_values": "[1,2]", "y_divide_by": "1"}
    options = ["experiment=crossover", f"out={tmp_path}", "experiment.systems=[ep,moeshard]", "cluster.world_size=2"]
    options += [f"experiment.panels.{MAP}.{key}={value}" for key, value in axes.items()]
    options += ["~experiment.panels.map_experts_ranks"]
    assert run(*SIMULATED, *options) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    (panel,) = plan["panels"]
    assert len(panel["points"]) == 4 and [len(launch["cells"]) for launch in plan["launches"]] == [1] * 8
    assert (tmp_path / f"{MAP}.png").exists() and set(states(tmp_path).values()) == {"ok"}


def test_lines_over_ranks_name_what_cannot_run(tmp_path):
    """Four experts on eight ranks: expert parallelism cannot, sharding can."""
    ranks = "experiment.panels.scaling.values=[2,8]"
    status = run(
        *(
            *SIMULATED,
            "experiment=scaling",
            "~experiment.panels.scaling_planned",
            "model.num_experts=4",
            "batch_size=1",
            ranks,
        ),
        *("experiment.systems=[ep,moeshard]", f"out={tmp_path}"),
    )
    assert status == 1
    (reason,) = (run["reason"] for run in read_runs(tmp_path).values() if run["state"] == "unsupported")
    assert reason.startswith("model.num_experts (4) must be divisible by cluster.world_size (8)")
    assert states(tmp_path) == {("ep", 2): "ok", ("moeshard", 2): "ok", ("ep", 8): "unsupported", ("moeshard", 8): "ok"}
    table = pd.read_csv(tmp_path / "tables" / "scaling.csv")
    assert set(table["ranks"]) == {2, 8} and (table["layer_ms"] > 0).all() and (table["memory_gb"] > 0).all()
    assert (tmp_path / "scaling_4.png").exists()


def test_a_process_that_dies_or_takes_too_long_is_a_failed_launch(tmp_path):
    late_one, lost = (
        Launch(workload=configuration(f"cluster.timeout_s={seconds}").workload, cells={}, cache_dir="", folder=folder)
        for seconds, folder in ((1e-9, str(tmp_path)), (60, str(tmp_path / "nowhere")))
    )
    with pytest.raises(LaunchFailed, match=r"not simulated within 1e-09 s") as late:
        launch_simulation(late_one)
    with pytest.raises(LaunchFailed, match=r"its process died with exit code 1") as failed:
        launch_simulation(lost)  # there is no such folder
    assert late.value.kind == "timeout" and failed.value.kind == "failed"


@pytest.mark.slow
def test_an_attribution_leaves_nothing_unexplained(tmp_path, capsys):
    """One pass has the times end to end and their places; a step's parts add up to it."""
    panels = [f"~experiment.panels.attribution_{name}" for name in ("batch", "batch_balanced")]
    typed = ["experiment=attribution", *panels, "model.num_experts=4", "batch_size=2", f"out={tmp_path}"]
    assert run(*SIMULATED, *typed) == 0
    assert "leaves nothing unexplained" in " ".join(capsys.readouterr().out.split())
    table = pd.read_csv(tmp_path / "tables" / "attribution_experts.csv")
    saved = table.pivot_table(index=["kind", "step"], columns="part", values="value", sort=False)
    assert saved["residual"].abs().max() < 1e-9 < saved["total"].abs().max()
    assert (saved.drop(columns=["total"]).sum(axis=1) - saved["total"]).abs().max() < 1e-9
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    assert set(samples.loc[samples["phase"] == "warmup", "metric"]) == {"ttft_ms"}
    assert set(samples.loc[samples["metric"] == "idle_ttft_ms", "iteration"]) == {0}
    levels = saved.loc["level"]
    assert (levels["host"] > 0).all() and (levels["kernels"] > 0).all()


@pytest.mark.slow
def test_a_host_that_costs_nothing_is_no_part_of_an_attribution(tmp_path):
    panels = [f"~experiment.panels.attribution_{name}" for name in ("batch", "batch_balanced", "experts_balanced")]
    costs = ("operation", "launch", "view", "collective", "synchronise")
    free = [f"device.host.{cost}_us=0" for cost in costs]
    options = ["model.num_experts=4", "batch_size=2", "experiment.systems=[ep,moeshard]", "experiment.twin=null"]
    run(*SIMULATED, "experiment=attribution", *panels, *free, *options, f"out={tmp_path}")
    table = pd.read_csv(tmp_path / "tables" / "attribution_experts.csv")
    levels = table[table["kind"] == "level"].pivot_table(index="step", columns="part", values="value")
    assert len(levels) == 2 and (levels["host"] == 0).all() and (levels["kernels"] > 0).all()
