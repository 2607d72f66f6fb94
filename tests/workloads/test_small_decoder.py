"""The trained decoder that comes with the project: whole, read as any other, and it has learned."""

import hashlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments.composition import configuration
from scripts.train_small_decoder import build, evaluate, loads, losses
from scripts.training import HELD_OUT_EVERY, SEQ_LEN, SHARED_TOKENS, optimise, read_corpus, split
from workloads.checkpoint import SHIPPED, open_checkpoint
from workloads.corpus import EmbeddedCorpus
from workloads.model import ModelShape

ROOT = Path(__file__).parents[2]
FOLDER = SHIPPED["small_decoder"]
TRAINING = json.loads((FOLDER / "config.json").read_text())["training"]


@pytest.fixture(scope="module")
def model() -> ModelShape:
    return configuration(["model=small_decoder"]).model


@pytest.fixture(scope="module")
def tokens_N(model) -> torch.Tensor:
    return read_corpus(model.vocab_size)[1]


@pytest.fixture(scope="module")
def held_out_PL() -> torch.Tensor:
    found = open_checkpoint("small_decoder").held_out()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def trained() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_hashes_files_and_sizes(model):
    stored = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in FOLDER.glob("*.safetensors")}
    assert stored == TRAINING["sha256"]
    sizes = [file.stat().st_size for file in FOLDER.iterdir()]
    assert max(sizes) < 500_000 and sum(sizes) < 4_000_000
    open_checkpoint("small_decoder").check(model)


def test_it_has_learned(trained, held_out_PL):
    loss = evaluate(trained, held_out_PL)
    assert loss == pytest.approx(TRAINING["loss_nats"]["held out"], abs=1e-3)
    assert loss < TRAINING["loss_nats"]["held out, by frequency alone"] - 1.5


def test_no_held_out_passage_shares_ten_tokens_with_training_text(tokens_N, held_out_PL):
    if EmbeddedCorpus().identity != TRAINING["corpus"]:
        pytest.skip("another Python has another text, of which the held-out passages are no part")
    read = [token for at, token in enumerate(tokens_N.tolist()) if at // SEQ_LEN % HELD_OUT_EVERY < HELD_OUT_EVERY - 1]
    runs = {tuple(read[at : at + SHARED_TOKENS]) for at in range(len(read))}
    held_out = held_out_PL.tolist()
    assert len(held_out) == 36
    assert not [p for p in held_out if any(tuple(p[at : at + SHARED_TOKENS]) in runs for at in range(SEQ_LEN - 9))]


def test_its_router_is_uneven(trained, held_out_PL, model):
    for block, rows_GE in loads(trained, [held_out_PL]).items():
        assert rows_GE.sum() == model.top_k * held_out_PL.numel()
        # A uniform choice among 32 experts for 9600 copies gives about 1.1.
        assert rows_GE.max() / rows_GE.float().mean() > 2, block


def test_training_repeats_itself_and_changes_what_all_tokens_share(model, tokens_N):
    start_S, _ = split(tokens_N)

    def trained_again() -> dict[str, torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            decoder = build(model)
        groups = [{"params": list(decoder.parameters()), "lr": 1e-3}]
        optimise(decoder, groups, partial(losses, decoder, 0.01), (tokens_N, start_S), steps=2, batch_size=2, seed=3)
        return decoder.state_dict()

    first, second = trained_again(), trained_again()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        untrained = build(model).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    shared_by_all = [name for name in first if ".experts." not in name]  # an expert without a token may stay
    assert not [name for name in shared_by_all if torch.equal(first[name], untrained[name])]


def test_the_loss_is_hugging_faces_where_no_token_is_replaced(trained, held_out_PL, monkeypatch):
    monkeypatch.setattr("scripts.train_small_decoder.REPLACED", 0.0)
    some_BL = held_out_PL[:4]
    with torch.inference_mode():
        loss, balance = losses(trained, 0.5, some_BL, torch.Generator().manual_seed(0))
        theirs = trained(input_ids=some_BL, labels=some_BL, output_router_logits=True)
    assert float(loss) == pytest.approx(evaluate(trained, some_BL))
    assert float(balance) == pytest.approx(0.5 * float(theirs.aux_loss))


@pytest.mark.slow
def test_the_script_leaves_a_checkpoint(tmp_path):
    command = [sys.executable, "-m", "scripts.train_small_decoder", "--steps", "2", "--out", str(tmp_path / "out")]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert printed.returncode == 0, printed.stderr
    assert "busiest rank" in printed.stdout and "by frequency alone" in printed.stdout
    training = json.loads((tmp_path / "out/config.json").read_text())["training"]
    assert training["steps"] == 2 and training["sha256"].keys() == TRAINING["sha256"].keys()
    open_checkpoint(str(tmp_path / "out")).check(configuration(["model=small_decoder"]).model)
