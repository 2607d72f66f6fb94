"""Campaigns of decoders: a prompt or one more token is timed, and every system's output is the dense model's."""

import json
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

from analysis.files import read_runs
from experiments.composition import configuration
from experiments.main import run_points
from experiments.plan import Point
from tests.experiments.tiny import run
from workloads.corpus import EmbeddedCorpus
from workloads.families import hugging_face_config
from workloads.tokenizer import load_or_train_tokenizer

SMALL = ("tier=smoke", "network=nvlink3", "engine=loop", "batch_size=3", "seq_len=9", "cluster.world_size=2")


def runs(out: Path) -> list[dict]:
    return list(read_runs(out).values())


def test_a_decoding_campaign_is_checked_and_counted(tmp_path):
    """Three sequences on one rank and one on the other. What systems compute in every family is in test_families."""
    chosen = ("model=deepseek_v3_laptop", "regime=decode", "router=learned", "batch_shares=[1,0.34]", f"out={tmp_path}")
    systems = ("moeshard", "ep", "eplb_profiled")
    configs = [configuration([*SMALL, *chosen, f"system={system}"]) for system in systems]
    assert run_points([Point("tiny", "tiny", "speedup", (), "num_experts", 4, None, configs)]) == 0
    found = runs(tmp_path)
    assert len(found) == 3 and all(run["correctness"]["passed"] for run in found)
    assert len({json.dumps(run["inputs"]["tokens"]) for run in found}) == 1
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    copies = samples[(samples["metric"] == "rows_useful") & (samples["phase"] == "measure")]
    ep = copies[copies["cell"].isin([run["cell"] for run in found if run["system"] == "ep"])]
    assert (ep.groupby(["iteration", "layer"])["value"].sum() == (3 + 1) * 8).all()
    assert set(ep["layer"]) == {1, 2, 3}
    routing = pd.read_parquet(tmp_path / "routing.parquet")
    for _, of_cell in routing.groupby("cell"):
        copies = of_cell.groupby(["rank", "iteration", "layer"])["tokens"].sum()
        assert copies.groupby("rank").agg(["min", "max"]).to_numpy().tolist() == [[3 * 8, 3 * 8], [1 * 8, 1 * 8]]


def test_a_checkpoint_with_its_own_tokenizer_is_measured(tmp_path):
    """As transformers writes them; routed by its own gate, with documents that end as its family's do."""
    sizes = configuration(["model=olmoe_laptop"]).model
    AutoModelForCausalLM.from_config(hugging_face_config(sizes)).save_pretrained(tmp_path / "olmoe")
    tokenizer = load_or_train_tokenizer(EmbeddedCorpus(), 4000, tmp_path)
    theirs = tokenizer.to_str().replace("</s>", "<|endoftext|>")
    (tmp_path / "olmoe/tokenizer.json").write_text(theirs)
    typed = [
        "model=olmoe_laptop",
        f"model.checkpoint={tmp_path / 'olmoe'}",
        "router=learned",
        f"out={tmp_path / 'out'}",
    ]
    configs = [configuration([*SMALL, *typed, f"system={system}"]) for system in ("moeshard", "ep")]
    assert run_points([Point("tiny", "tiny", "speedup", (), "num_experts", 64, None, configs)]) == 0
    assert all(run["correctness"]["passed"] for run in runs(tmp_path / "out"))


def test_a_decoder_decodes_on_simulated_ranks(tmp_path, capsys):
    typed = ["model=glm4_moe", "regime=decode", "cluster=simulated", "device=h100_sxm", "network=device", "tier=once"]
    typed += ["cluster.world_size=8", "batch_size=16", "seq_len=4096", "precision=bf16", "system=ep", f"out={tmp_path}"]
    typed += ["model.num_blocks=4", "batch_shares=[1,0.5,0.25,0.25,1,1,1,0.01]"]
    assert run(*typed) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "TPOT" in said and "TTFT" not in said.replace("ttft", "")
    (stored,) = runs(tmp_path)
    assert stored["state"] == "ok" and stored["regime"] == "decode"
    assert "glm4_moe of 4 blocks, d_model 4096, decode, ranks with 1:0.5:0.25:0.25:1:1:1:0.01 of the batch" in said
    routing = pd.read_parquet(tmp_path / "routing.parquet")
    copies_R = routing[routing["layer"] == 1].groupby("rank")[["tokens", "intended"]].sum()
    sequences_R = [16, 8, 4, 4, 16, 16, 16, 1]
    assert copies_R["tokens"].tolist() == [8 * sequences for sequences in sequences_R]
    assert copies_R["intended"].tolist() == pytest.approx(copies_R["tokens"].tolist())


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("model=olmoe_laptop", "regime=encode"), "regime is 'encode'; model.family 'olmoe' can prefill or decode"),
        (("regime=decode",), "regime is 'decode'; model.family 'switch' can encode"),
        (("model=olmoe_laptop", "regime=decode", "seq_len=1"), "seq_len is 1; regime=decode needs at least 2"),
        (("model=deepseek_v3_laptop", "model.num_experts=20"), "model.num_experts is 20; deepseek_v3 must have equal"),
        (("model=olmoe_laptop", "model.top_k=99"), "model.top_k is 99; it must be at most model.num_experts (64)"),
        (("model=olmoe_laptop", "model.family=llama9"), "model.family is 'llama9'; it must be one of switch, mixtral"),
    ],
)
def test_what_a_model_lacks_is_one_sentence(tmp_path, capsys, typed, said):
    assert run(*typed, f"out={tmp_path}") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
