"""Campaigns of simulated ranks: a map, a line of ranks, and cells that fail."""

import json
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest

from analysis.files import read_runs
from clusters.launch import LaunchFailed
from experiments import simulate
from experiments.records import Launch, Member
from experiments.simulate import launch_simulation, simulate_cell, untimed
from tests.clusters.simulated.stub import call
from tests.experiments.tiny import CONF, TINY, configuration, run

SIMULATED = ["cluster=simulated", "device=a100_sxm", *(one for one in TINY if one.startswith(("model", "seq")))]
MAP = "map_imbalance_batch"
MOVED = ["layer", "section", "collective", "bytes_sent", "bytes_received"]
STATEFUL = {
    "dualsparse",
    *("fastermoe_oracle", "harmoeny_oracle", "laer_lagged", "lina_predicted", "llep_oracle", "prophet_lagged"),
    *("smartmoe_lagged", "ultraep_oracle", "vllm_eplb_lagged"),
}


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


@pytest.mark.parametrize("name", sorted(path.stem for path in (Path(CONF) / "system").glob("*.yaml")))
def test_a_pass_that_is_left_out_would_have_changed_nothing(name, tmp_path):
    """Systems of which no call changes a later one do the same work without one before, in the time of the same work.

    Not to the last digit: after another pass a rank's host may have run ahead of its device.
    """
    passes, without, after = call(with_and_without, name, str(tmp_path), ranks=2)
    assert passes == (name in STATEFUL)
    for (rows, moved), (rows_again, moved_again) in zip(without, after, strict=True):
        for row, again in zip(rows, rows_again, strict=True):
            exact = row["unit"] != "ms"
            assert row["value"] == pytest.approx(again["value"], rel=1e-9 if exact else 0.01), row
        assert moved == moved_again


def with_and_without(name: str, cache_dir: str) -> tuple[int, list, list]:
    """How many passes a system is given before the timed one, and what ranks tell of it, and after one more."""
    config = configuration(*SIMULATED, "tier=once", "router.alpha=0.7", f"system={name}")
    launch = Launch(workload=config.workload, cells={"it": Member(config.system, "loop")}, cache_dir=cache_dir)
    asked: list[range] = []

    def told(passes) -> list[tuple[list[dict], list[dict]]]:
        with patch.object(simulate, "untimed", passes):
            ranks = simulate_cell(launch, "it")
        moved = [[{key: each[key] for key in MOVED} for each in rank.collectives] for rank in ranks]
        return list(zip(map(timed, ranks), moved, strict=True))

    without = told(lambda systems, tier: asked.append(untimed(list(systems), tier)) or asked[-1])
    return len(asked[0]), without, told(lambda systems, tier: range(1, 2))


def timed(rank) -> list[dict]:
    """The whole pass, and what every layer computed and sent; not memory, which is the most that a batch ever took."""
    wanted = {"ttft_ms", "rows_computed", "rows_useful", "bytes_sent", "dropped"}
    return [row for row in rank.samples if row["phase"] != "warmup" and row["metric"] in wanted]


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
    assert not (samples["phase"] == "warmup").any(), "no call of these systems changes a later one"
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
