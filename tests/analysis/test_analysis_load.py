import json

import pytest

from analysis.load import coverage, load_campaign


def test_samples_carry_run_columns(fig3):
    campaign = load_campaign(fig3())
    samples = campaign.samples()
    assert set(samples["cell"]) == set(campaign.runs)
    one = samples[samples["cell"] == "moeshard_num_experts_64_1"].iloc[0]
    assert (one["system"], one["engine"], one["precision"], one["twin"]) == ("moeshard", "grouped", "fp32", False)
    assert (one["num_experts"], one["batch_size"], one["launch"]) == (64, 25, 1)


def test_failed_and_missing_cells_stay_visible(fig3):
    oom = {"state": "oom", "reason": "Out of memory on rank 2.", "correctness": None}
    campaign = load_campaign(fig3(deepspeed_num_experts_256_0=oom, moeshard_batch_size_1_1=None))
    cells = coverage(campaign).set_index("cell")
    assert len(cells) == 30 and (cells["state"] == "ok").sum() == 28 and (cells["twin"] == True).sum() == 10  # noqa: E712
    assert tuple(cells.loc["deepspeed_num_experts_256_0", ["state", "reason"]]) == ("oom", "Out of memory on rank 2.")
    assert cells.loc["moeshard_batch_size_1_1", "state"] == "missing"
    assert "deepspeed_num_experts_256_0" not in set(campaign.samples()["cell"])


def test_campaign_in_which_nothing_ran(fig3):
    cells = [f"{s}_num_experts_8_{i}" for s in ("deepspeed", "moeshard") for i in (0, 1)]
    campaign = load_campaign(fig3(experts=(8,), batches=(), twins=False, **dict.fromkeys(cells)))
    assert campaign.samples().empty
    assert {run["state"] for run in campaign.runs.values()} == {"missing"}


def test_routing_is_read_when_asked_for(fig3):
    routing = load_campaign(fig3(experts=(8,), batches=(), launches=1)).routing("moeshard_num_experts_8_0")
    assert list(routing.columns) == ["layer", "iteration", "rank", "expert", "tokens", "intended"]
    assert routing.groupby(["layer", "iteration", "rank"])["tokens"].sum().eq(25 * 120).all()


@pytest.mark.parametrize("name", ["run.json", "samples.parquet", "routing.parquet"])
def test_truncated_file_is_named_and_never_read(one_point, name):
    folder = one_point()
    path = folder / "cells" / "moeshard_num_experts_8_0" / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=f"moeshard_num_experts_8_0/{name} (cannot be read|is not what was written)"):
        campaign = load_campaign(folder)
    assert campaign.runs["moeshard_num_experts_8_0"]["state"] == "corrupt"
    assert "moeshard_num_experts_8_0" not in campaign.frames


def edit_run(folder, cell, **changes):
    path = folder / "cells" / cell / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_samples_that_were_edited_are_not_read(one_point):
    folder = one_point(moeshard_num_experts_8_0={"checksums": {"samples.parquet": "0" * 64}})
    with pytest.warns(UserWarning, match=r"samples.parquet is not what was written"):
        assert "moeshard_num_experts_8_0" not in load_campaign(folder).frames


def test_samples_without_a_checksum_are_not_read(one_point):
    folder = one_point()
    edit_run(folder, "moeshard_num_experts_8_0", checksums={})
    with pytest.warns(UserWarning, match=r"samples.parquet has no checksum"):
        assert "moeshard_num_experts_8_0" not in load_campaign(folder).frames


def test_ok_cell_without_samples_is_corrupt(one_point):
    folder = one_point()
    (folder / "cells" / "moeshard_num_experts_8_0" / "samples.parquet").unlink()
    with pytest.warns(UserWarning, match=r"samples.parquet cannot be read"):
        assert load_campaign(folder).runs["moeshard_num_experts_8_0"]["state"] == "corrupt"


def test_campaign_of_the_first_schema_is_refused_in_a_sentence(one_point):
    folder = one_point()
    (folder / "plan.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(ValueError, match=r"plan.json is not a document of schema 2 \(1 is from another version"):
        load_campaign(folder)
    (folder / "plan.json").unlink()
    with pytest.raises(ValueError, match=r"plan.json cannot be read"):
        load_campaign(folder)


def test_outputs_that_disagree_with_other_systems_are_said(one_point):
    agreement = {"with": ["deepspeed"], "iterations": 9, "relative_error": 0.2, "tolerance": 2e-5, "passed": False}
    check = {"relative_error": 1e-6, "tolerance": 1e-4, "passed": True, "agreement": agreement}
    campaign = load_campaign(one_point(moeshard_num_experts_8_0={"correctness": check}))
    shown = coverage(campaign).set_index("cell").loc["moeshard_num_experts_8_0", "correctness"]
    assert shown == "failed (relative error 0.2, 2e-05 allowed)"
