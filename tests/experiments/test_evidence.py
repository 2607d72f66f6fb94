"""What a campaign stores of counted work, and a capacity that rests on what will be drawn."""

import numpy as np
import pytest

from analysis.files import read_cell_table, read_runs
from experiments.configuration import build_router
from experiments.main import run_points
from experiments.schedule import iterations_of
from tests.experiments.tiny import configuration, point

SYSTEMS = ("deepspeed_lossless", "deepspeed_dropless", "moeshard_published", "lina_predicted")
DRAWS = ("batch_size=3", "router.alpha=1.0", "seed=4")  # 36 tokens a rank; the warm-up draws the busiest expert


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """System -> metric -> values of every rank and iteration, of a campaign in which every system was right."""
    out = tmp_path_factory.mktemp("counted")
    assert run_points([point(*SYSTEMS, out=out, overrides=DRAWS)]) == 0
    found = {}
    for cell, run in read_runs(out).items():
        samples = read_cell_table(out, cell, "samples")
        assert run["state"] == "ok" and run["correctness"]["passed"], run
        found[run["system"]] = {
            str(metric): rows["value"].to_numpy()
            for metric, rows in samples.query("phase == 'measure'").groupby("metric")
        }
    assert set(found) == set(SYSTEMS)
    return found


def busiest(phases: list[str]) -> int:
    """The most tokens of any rank for one expert in the iterations of these phases."""
    config = configuration(*DRAWS)
    planned = iterations_of(config.tier)
    routers = [build_router(config, rank=rank, classifier=None) for rank in range(2)]
    return max(
        int(np.bincount(router.draw(36, layer=1, iteration=i)[:, 0]).max())
        for router in routers
        for phase in phases
        for i in planned[phase]
    )


def test_lossless_capacity_is_the_largest_count_of_the_whole_workload(counted):
    lossless, dropless = counted["deepspeed_lossless"], counted["deepspeed_dropless"]
    assert set(lossless["rows_computed"]) == {4 * busiest(["measure", "instrumented", "warmup"])}
    assert dropless["rows_computed"].max() == 4 * busiest(["measure"]) < lossless["rows_computed"].max()
    assert lossless["dropped"].sum() == dropless["dropped"].sum() == 0


def test_whether_loads_were_foreseen_is_stored_where_a_system_tries(counted):
    assert set(counted["lina_predicted"]["predicted"]) <= {0, 1}
    assert "predicted" not in counted["moeshard_published"]


def test_a_planned_dispatch_is_stored_beside_the_best_that_there_is(counted):
    """Rank 0 tells it; the two ranks' rows are 72 in all, so the best is at least 36."""
    least_N = counted["lina_predicted"]["least_rows"]
    told_N = least_N[least_N > 0]
    assert 2 * len(told_N) == len(least_N) and told_N.min() >= 36
    assert counted["lina_predicted"]["rows_computed"].max() >= told_N.min()
    assert "least_rows" not in counted["moeshard_published"]


def test_a_batch_that_comes_again_is_accounted_by_each_plan_it_had(tmp_path):
    """One recorded batch, whose tokens all go to the first rank's experts, and a planner that alternates."""
    trace = tmp_path / "trace.csv"
    trace.write_text("num_experts,layer,iteration,tokens_per_expert\n4,1,0,3 1 0 0\n")
    overrides = ("router=trace", f"router.path={trace}", "router.held_out=0", "cluster=gloo")
    overrides += ("tier.rounds=2", "tier.turn_s=10", "tier.longest_turn=3")
    assert run_points([point("tests.experiments.tiny.RotatingExpertParallel", out=tmp_path, overrides=overrides)]) == 0
    (run,) = read_runs(tmp_path).values()
    samples = read_cell_table(tmp_path, run["cell"], "samples").query("metric == 'rows_computed' and rank == 0")
    rows = {phase: found.sort_values("iteration")["value"].tolist() for phase, found in samples.groupby("phase")}
    # First, warm-up, then turns of three forward passes of one pass and the other.
    assert rows == {"measure": 2 * [48, 0, 48], "instrumented": 2 * [0, 48, 0]}
    assert 1e6 < run["ceilings"]["link_bytes_per_s"] < 1e12


def test_memory_traffic_is_stored_in_bytes(counted):
    rows = 2 * 36  # of both ranks; every expert has one, and a shard's hidden layer is 16 wide
    assert set(counted["moeshard_published"]["memory_bytes"]) == {4.0 * (4 * 2 * 16 * 16 + rows * 2 * (16 + 16))}
