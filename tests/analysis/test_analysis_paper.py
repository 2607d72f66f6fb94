import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis.studies.paper.__main__ import main, verify
from analysis.studies.paper.authors import find_runs, latencies, matching_run, read_settings, recompute
from analysis.studies.paper.reference import load_reference, runs_behind

ROOT = Path(__file__).parents[2]
FOLDERS = {"deepspeed": "deepspeed", "megablocks": "mgblcks", "loop": "sliced"}
MANAGERS = {"megablocks": "sliced_fused_kernel", "loop": "manual_sliced"}


def write_run(checkout, row, iterations=8):
    """One run in the authors' layout; iterations 0 to 3 are a hundred times slower, GPU 1 is 10 % slower."""
    engine = row["engine"]
    name = f"encoder_{engine}_{row['num_experts']}_experts_4_gpus_{row['batch_size']}_bs"
    folder = checkout / "outputs" / FOLDERS[engine] / name
    data = {key: row[key] for key in ("num_experts", "batch_size", "seq_len")} | {"world_size": 4}
    data |= {"router_skew": 0.6, "num_experts_skew": row["k_r"], "enable_router_skew": True}
    data |= {"random_router_skew": False, "model_type": "encoder"}
    data |= {"expert_manager": MANAGERS[engine]} if engine in MANAGERS else {"capacity_factor": row["capacity_factor"]}
    slow_I = np.where(np.arange(iterations) < 4, 100, 1)
    for gpu in (0, 1):
        (folder / str(gpu)).mkdir(parents=True)
        column = "Latency (s)" if engine == "deepspeed" else "latency (s)"
        seconds = row["ttft_max_rank_median_ms"] / 1e3 / 1.1 * (1 + 0.1 * gpu) * np.ones(iterations)
        pd.DataFrame({"iteration": range(iterations), column: seconds}).to_csv(
            folder / str(gpu) / "e2e.csv", index=False
        )
        for layer in (1, 3):
            ms = row[f"layer{layer}_median_ms"] * slow_I
            rows = pd.DataFrame({"iteration": range(iterations), "latency (ms)": ms})
            rows.to_csv(folder / str(gpu) / f"moe_l{layer}.csv", index=False)
            rows.to_csv(folder / str(gpu) / f"moe_l{layer}_decode.csv", index=False)
    (folder / "data.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe-inference")
    for row in load_reference().runs.to_dict("records"):
        write_run(folder, row)
    return folder


def test_recompute_leaves_the_first_iterations_out(checkout):
    """The fake runs have the medians of paper_runs.csv as every latency after the fourth."""
    reference = load_reference()
    points = recompute(checkout, reference.figures, reference.runs, runs_behind).set_index(["figure", "x"])
    assert len(points) == 20
    expected = (178.96 / 41.97 + 177.29 / 41.02) / 2
    assert points.loc[("3a", 128), "recomputed_layer"] == pytest.approx(expected)
    assert points.loc[("3a", 128), "recomputed_ttft"] == pytest.approx(1131.99 / 320.9)


def test_runs_are_known_by_what_data_json_says(checkout, tmp_path):
    settings = read_settings(checkout)
    row = load_reference().runs.iloc[0].to_dict()
    run = matching_run(settings, row)
    assert run.series == ("deepspeed", "deepspeed") and list(run.layer_IG) == [1, 3] and run.ttft_IG.shape == (8, 2)
    with pytest.raises(ValueError, match=r"no run of deepspeed \(deepspeed\), 8 experts, batch 77"):
        matching_run(settings, row | {"batch_size": 77})
    with pytest.raises(ValueError, match="is not a checkout of sacs-epfl/moe-inference"):
        find_runs(tmp_path)


def test_latency_columns_have_two_names(tmp_path):
    for number, name in enumerate(("Latency (s)", "latency (s)")):
        pd.DataFrame({"iteration": [1, 0], name: [2.0, 1.0]}).to_csv(tmp_path / f"{number}.csv", index=False)
    assert latencies([tmp_path / "0.csv", tmp_path / "1.csv"]).tolist() == [[1, 1], [2, 2]]


def printed(**options):
    console = Console(record=True, width=200)
    verify(console, **options)
    return console.export_text()


def test_from_the_summary_of_the_authors_runs():
    text = printed()
    assert "Recomputed from the summary of the authors' runs" in text
    assert 'the published "TTFT speed-ups" are ratios of MoE layer times' in text
    assert "published 6.84×, layer ratio 7.08×, TTFT ratio 4.57×" in " ".join(text.split())


def test_from_a_checkout_and_beside_a_campaign(checkout, full):
    text = printed(checkout=checkout, campaign=full)
    assert f"Recomputed from the raw data in {checkout}" in " ".join(text.split())
    assert "6.00×" in text and "reproduced" in text and "likely cause" in text


def test_learned_router_layers_of_a_checkout(tmp_path):
    for row in load_reference().runs.to_dict("records"):
        write_run(tmp_path, row)
    row = load_reference().runs.query("engine == 'deepspeed' and batch_size == 250 and num_experts == 128")
    folder = write_run(tmp_path / "other", row.iloc[0].to_dict())
    data = json.loads((folder / "data.json").read_text()) | {"enable_router_skew": False}
    (folder / "data.json").write_text(json.dumps(data))
    folder.rename(tmp_path / "outputs" / "deepspeed" / "normalrun")
    assert "learned router, encoder, deepspeed: a MoE layer takes 177.3 to 179.0 ms" in " ".join(
        printed(checkout=tmp_path).split()
    )


def test_command_line(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    assert "Finding:" in said and "6.45×" in said


def test_bad_folders_get_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1 and "is not a checkout" in capsys.readouterr().out
    assert main(["--campaign", str(tmp_path)]) == 1 and "plan.json cannot be read" in capsys.readouterr().out
