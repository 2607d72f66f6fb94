"""The trained checkpoint that comes with the project: whole, loaded as any other, and it has learned to route."""

import hashlib
import json
import math
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer, SwitchTransformersEncoderModel

from scripts.small_switch import MODEL, Encoder, SwitchFFN, loads
from scripts.train_small_switch import train
from scripts.training import SEQ_LEN, split, statistics, unigram_loss
from workloads.batches import TokenSource
from workloads.checkpoint import SHIPPED, open_checkpoint
from workloads.corpus import EmbeddedCorpus
from workloads.model import ModelShape
from workloads.weights import SeededLayer

ROOT = Path(__file__).parents[2]
FOLDER = SHIPPED["small_switch"]
TRAINING = json.loads((FOLDER / "config.json").read_text())["training"]
WORLD_SIZE, BATCH_SIZE = 4, 25


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> TokenSource:
    return TokenSource(EmbeddedCorpus(), MODEL.vocab_size, tmp_path_factory.mktemp("cache"), FOLDER)


@pytest.fixture(scope="module")
def batches_GBL(source) -> list[torch.Tensor]:
    sizes = {"iteration": 0, "world_size": WORLD_SIZE, "batch_size": BATCH_SIZE, "seq_len": SEQ_LEN}
    return [torch.from_numpy(source.batch(rank=rank, **sizes)) for rank in range(WORLD_SIZE)]


@pytest.fixture(scope="module")
def trained() -> Encoder:
    return Encoder(folder=FOLDER)


def test_its_name_opens_it_from_any_directory(monkeypatch, tmp_path):
    (tmp_path / "small_switch").mkdir()
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint("small_switch")
    assert checkpoint.folder == ROOT / "workloads/trained/small_switch"
    checkpoint.check(MODEL)
    with pytest.raises(ValueError, match=r"small_switch has no model\.safetensors"):
        open_checkpoint("./small_switch")


def test_hashes_and_files():
    stored = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in FOLDER.glob("*.safetensors")}
    assert stored == TRAINING["sha256"]
    others = {"config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in FOLDER.iterdir()} == {*stored, *others}  # nothing pickled
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4_000_000


def test_the_configuration_has_its_sizes():
    model = yaml.safe_load((ROOT / "conf/model/small_switch.yaml").read_text())
    assert vars(ModelShape(**model)) == vars(replace(MODEL, checkpoint="small_switch"))


def test_equals_hugging_face(trained, batches_GBL):
    theirs = SwitchTransformersEncoderModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected_BLD = theirs(input_ids=batches_GBL[0]).last_hidden_state
        torch.testing.assert_close(trained.hidden(batches_GBL[0]), expected_BLD, rtol=1e-4, atol=1e-4)


def test_tokenizer_is_the_one_that_hugging_face_reads(source):
    text = "The assignment of a value to an attribute"
    assert AutoTokenizer.from_pretrained(FOLDER).encode(text) == source.tokenizer.encode(text).ids
    assert source.tokenizer.get_vocab_size() == MODEL.vocab_size


def test_it_has_learned(trained, source):
    tokens_N = torch.from_numpy(source.tokens(1).astype("int64"))
    start_S, held_out_PL = split(tokens_N)
    with torch.inference_mode():
        loss = float(trained.loss(held_out_PL, torch.Generator().manual_seed(1)))
    assert loss < unigram_loss(tokens_N, start_S, held_out_PL, MODEL.vocab_size) - 1
    if source.corpus.identity == TRAINING["corpus"]:  # another Python has another text
        assert loss == pytest.approx(TRAINING["loss_nats"]["held out"], abs=0.3)  # other masks


def test_loads_are_uneven_and_the_same_every_time(trained, batches_GBL):
    found, again = loads(trained, batches_GBL), loads(Encoder(folder=FOLDER), batches_GBL)
    for block, rows_GE in found.items():
        assert torch.equal(rows_GE, again[block])
        assert rows_GE.sum(1).tolist() == [BATCH_SIZE * SEQ_LEN] * WORLD_SIZE
        found_here = statistics(rows_GE)
        # A uniform choice among 128 experts for 12000 tokens gives about 1.3 and 0.1.
        assert found_here["busiest expert / mean"] > 2 and found_here["CV"] > 0.5, block


def test_layer_equals_experts_one_by_one():
    layer, weights = SwitchFFN().eval(), SeededLayer(MODEL, 1, 0, torch.float32, torch.device("cpu"))
    layer.take(weights)
    hidden_BLD = torch.randn(2, 50, MODEL.d_model, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output_TD = layer(hidden_BLD).flatten(0, 1)
    wi_EDF, wo_EFD = weights.experts(list(range(MODEL.num_experts)))
    for x_D, y_D in zip(hidden_BLD.flatten(0, 1), output_TD, strict=True):
        probability, expert = (weights.router() @ x_D).softmax(0).max(0)
        torch.testing.assert_close(y_D, probability * ((x_D @ wi_EDF[expert]).relu() @ wo_EFD[expert]))


def test_balance_loss_is_one_for_even_loads_and_more_for_uneven_ones():
    layer = SwitchFFN().eval()
    layer.take(SeededLayer(MODEL, 1, 0, torch.float32, torch.device("cpu")))
    with torch.no_grad():
        layer.router_ED.zero_()
        layer(torch.randn(1, 128, MODEL.d_model))
        assert layer.balance_loss.item() == pytest.approx(1)  # every expert equally probable, whoever gets the token
        layer.router_ED[5] = 100
        layer(torch.ones(1, 128, MODEL.d_model))
    assert layer.balance_loss.item() == pytest.approx(MODEL.num_experts)


def test_training_repeats_itself_and_changes_every_parameter(source):
    tokens_N = torch.from_numpy(source.tokens(1).astype("int64"))
    start_S, _ = split(tokens_N)

    def trained_again() -> dict[str, torch.Tensor]:
        encoder = Encoder(seed=3)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            train(encoder, tokens_N, start_S, Namespace(steps=2, seed=3, balance=0.001))
        return encoder.stored()

    first, second, untrained = trained_again(), trained_again(), Encoder(seed=3).stored()
    assert all(torch.equal(first[name], second[name]) for name in first)
    shared_by_all = [name for name in first if "expert_" not in name]  # an expert without a token may stay
    assert not [name for name in shared_by_all if torch.equal(first[name], untrained[name])]


@pytest.mark.slow
def test_the_script_leaves_a_checkpoint(tmp_path):
    command = [sys.executable, "-m", "scripts.train_small_switch", "--steps", "2", "--out", str(tmp_path / "out")]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert printed.returncode == 0, printed.stderr
    assert "busiest rank" in printed.stdout and "by frequency alone" in printed.stdout
    training = json.loads((tmp_path / "out/config.json").read_text())["training"]
    assert training["steps"] == 2 and training["sha256"] != TRAINING["sha256"]
    assert all(math.isfinite(loss) for loss in training["loss_nats"].values())
    Encoder(folder=tmp_path / "out")
