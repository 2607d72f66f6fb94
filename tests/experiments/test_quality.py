"""What outputs are worth: measured on ranks that read held-out text beside the dense model."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from experiments import composition
from experiments.main import BAD_INPUT, SOME_FAILED
from experiments.plan import Point
from experiments.quality import run_quality
from experiments.quality_rank import Pass, compare, dealt, texts
from experiments.run import run
from workloads.checkpoint import SHIPPED, open_checkpoint

ROOT = Path(__file__).parents[2]
G, B = 2, 18  # all 36 held-out passages in one pass
SETTING = ["router=learned", "cluster=gloo", f"cluster.world_size={G}", "network=none", "tier=smoke"]
FAILS = {"_target_": "tests.experiments.tiny.RaisesOnRankOne", "name": "RaisesOnRankOne", "engine": "loop"}


def point(*overrides: str, kind: str = "quality") -> Point:
    config = composition.configuration([f"batch_size={B}", *SETTING, "model=small_decoder", *overrides])
    return Point("quality", "quality", kind, (), "batch_size", B, None, [config])


def test_sums_of_two_guesses_worked_by_hand():
    uniform, sure = [0.0, 0.0], [math.log(3), 0.0]  # probabilities 1/2, 1/2 and 3/4, 1/4
    dense = Pass(torch.tensor([sure, sure]), {1: torch.tensor([[3.0, 4.0]])}, {1: 0})
    other = Pass(torch.tensor([sure, [0.0, math.log(3)]]), {1: torch.tensor([[3.0, 1.0]])}, {1: 2})
    found = compare(other, dense, torch.tensor([0, 0]))
    assert found["guesses"] == 2 and found["agreed"] == 1
    assert found["nats"] == pytest.approx(-math.log(3 / 4) - math.log(1 / 4))
    assert found["kl_nats"] == pytest.approx(3 / 4 * math.log(3) - 1 / 4 * math.log(3))  # of the second guess alone
    assert [found[f"{part}.1"] for part in ("error", "scale", "dropped", "tokens")] == [9, 25, 2, 1]
    even = Pass(torch.tensor([uniform, sure]), dense.output_TD, {1: 0})
    assert compare(even, dense, torch.tensor([0, 0]))["kl_nats"] == pytest.approx(
        3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    )


def test_passages_are_dealt_as_in_the_example():
    assert dealt(9, 1, world_size=2, batch_size=2) == [slice(2, 4), slice(6, 8)]
    assert dealt(3, 0, world_size=2, batch_size=2) == []


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 7))
def test_every_passage_is_read_at_most_once_and_ranks_read_as_many(num_passages, world_size, batch_size):
    ranks = [dealt(num_passages, rank, world_size, batch_size) for rank in range(world_size)]
    read = [passage for rank in ranks for places in rank for passage in range(places.start, places.stop)]
    assert len(read) == len(set(read)) and set(read) <= set(range(num_passages))
    assert {len(rank) for rank in ranks} == {num_passages // (world_size * batch_size)}
    assert num_passages - len(read) < world_size * batch_size


def test_a_checkpoint_without_held_out_text_reads_the_corpus(monkeypatch):
    config = point("batch_size=1").configs[0]
    session = SimpleNamespace(rank=1, world_size=2)
    program: Any = SimpleNamespace(workload=config, session=session, token_batch=lambda number: np.full((1, 3), number))
    held_out = list(texts(program))
    assert len(held_out) == 18 and held_out[0].shape == (1, 120)
    monkeypatch.setattr("experiments.quality_rank.open_checkpoint", lambda name: SimpleNamespace(held_out=lambda: None))
    assert [ids_BL.tolist() for ids_BL in texts(program)] == [[[0, 0, 0]], [[1, 1, 1]]]  # two rounds of tier=smoke


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[int, Path]:
    """Systems of the decoder in one launch, and in a second one, without the one that failed."""
    out = tmp_path_factory.mktemp("decoder")
    kept = [f"out={out}"]
    points = [point(f"system={name}", *kept) for name in ("ep", "moeshard", "gshard", "moeshard_published")]
    points += [point("system=tutel", "system.capacity_factor=4", *kept)]
    fails = composition.configuration([f"batch_size={B}", *SETTING, "model=small_decoder", *kept])
    fails.system.clear()
    fails.system.update(FAILS)
    points[0].configs.append(fails)
    return run_quality(points, ["experiment=quality"]), out


@pytest.fixture(scope="module")
def rows(measured) -> pd.DataFrame:
    return pd.read_csv(measured[1] / "quality.csv").set_index("system")


def test_the_dense_perplexity_is_hugging_faces(rows):
    theirs = AutoModelForCausalLM.from_pretrained(SHIPPED["small_decoder"], dtype=torch.float32).eval()
    held_out_PL = open_checkpoint("small_decoder").held_out()
    with torch.inference_mode():
        loss = float(theirs(input_ids=held_out_PL, labels=held_out_PL).loss)
    assert rows["dense_perplexity"].dropna().to_numpy() == pytest.approx(math.exp(loss), rel=1e-5)
    assert rows.loc["ep", "guesses"] == held_out_PL.numel() - len(held_out_PL)


def test_an_exact_system_equals_dense_and_a_dropping_one_does_not(rows, measured):
    exact, dropping = rows.loc[["ep", "moeshard"]], rows.loc[["gshard", "tutel"]]
    assert exact["perplexity"].to_numpy() == pytest.approx(exact["dense_perplexity"].to_numpy(), rel=1e-6)
    assert (exact["agreement"] == 1).all() and (exact["dropped_share"] == 0).all() and exact["kl_nats"].max() < 1e-9
    layers = pd.read_csv(measured[1] / "quality_layers.csv")
    largest = layers.groupby("system")["relative_error"].max()
    assert largest[["ep", "moeshard"]].max() < 1e-5 < 0.05 < largest[["gshard", "tutel"]].min()
    assert (dropping["perplexity"] > 1.005 * dropping["dense_perplexity"]).all()
    assert (dropping["dropped_share"] > 0.02).all() and (dropping["agreement"] < 0.99).all()
    # With the room that lets few copies fall Tutel loses less than GShard with its own.
    assert rows.loc["tutel", "perplexity"] < rows.loc["gshard", "perplexity"]
    assert rows.loc["gshard", "exactness"] == "approximate" and rows.loc["tutel", "options"].startswith("capacity")


def test_what_cannot_run_or_fails_is_a_row_with_its_reason(rows, measured):
    assert measured[0] == SOME_FAILED
    assert (
        rows.loc["moeshard_published", "state"] == "unsupported" and "top-1" in rows.loc["moeshard_published", "reason"]
    )
    failed = rows.loc["RaisesOnRankOne"]
    assert failed["state"] == "failed" and "cannot count to two" in failed["reason"]
    setting = json.loads((measured[1] / "setting.json").read_text())
    assert setting["command"] == ["experiment=quality"] and len(setting["workloads"]) == 1


def test_an_encoder_guesses_hidden_tokens(tmp_path):
    encoder = ["model=small_switch", f"out={tmp_path}", "system=deepspeed"]
    points = [point(*encoder), point(*encoder, "system.capacity_factor=1")]
    assert run_quality(points) == 0
    every, few = pd.read_csv(tmp_path / "quality.csv").to_dict("records")
    assert every["perplexity"] == pytest.approx(every["dense_perplexity"], rel=1e-6) and every["agreement"] == 1
    assert few["dropped_share"] > 0.2 and few["agreement"] < 0.95 and few["perplexity"] > few["dense_perplexity"]
    assert 0.1 < few["guesses"] / (36 * 120) < 0.2


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.checkpoint=null"], "model.checkpoint is null: what untrained weights guess has no quality"),
        (["router=synthetic"], "router is 'synthetic'; it must be 'learned'"),
        (["cluster=simulated"], "cluster is 'simulated'; quality is measured on one of gloo, nccl, emulated"),
        (["regime=decode"], "regime is 'decode'; quality is measured on whole sequences"),
        (["seq_len=121"], "seq_len is 121; held-out passages of small_decoder have 120 tokens"),
        (["batch_size=19"], "batch_size is 19 on 2 ranks, which is more than the 36 held-out passages"),
        (["system=moeshard_published"], "system moeshard_published has top-1 routing as in the paper, got top_k = 2"),
    ],
)
def test_what_would_say_nothing_is_refused_in_one_sentence(overrides, sentence, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_quality([point(*overrides, f"out={out}")]) == BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}") and said.count("\n") == 1 and not out.exists()


def test_a_folder_that_cannot_be_is_known_before_anything_is_launched(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run_quality([point("system=ep", f"out={tmp_path / 'file/out'}")]) == BAD_INPUT
    assert "Not a directory" in capsys.readouterr().err


def test_panels_of_other_kinds_are_not_mixed_in(capsys):
    assert run([point(), point(kind="speedup")], []) == BAD_INPUT
    assert "panels of kind quality are measured alone; the experiment has speedup too" in capsys.readouterr().err


def test_the_page_shows_the_table_that_was_measured():
    sample = (ROOT / "results/sample-quality/capacity/quality.md").read_text()
    rows = [line for line in sample.splitlines() if line.startswith("|")]
    assert len(rows) == 20 and "\n".join(rows) in (ROOT / "docs/quality.md").read_text()
