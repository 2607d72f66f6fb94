"""The recorder: what it writes is what the encoder's own router did, and what replays it routes alike."""

from pathlib import Path

import numpy as np
import pytest
import torch

from routers.token_trace import DEFAULT_PATH, TokenTrace
from scripts.record_token_trace import main, open_corpus, parse, record
from scripts.small_switch import Encoder
from workloads.batches import TokenSource
from workloads.checkpoint import SHIPPED, open_checkpoint
from workloads.corpus import EmbeddedCorpus, FilesCorpus

FOLDER = SHIPPED["small_switch"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def recorded(cache) -> TokenTrace:
    return record(open_checkpoint("small_switch"), EmbeddedCorpus(), 3_001, cache, "small_switch")


def test_whole_sequences_in_the_types_of_the_format(recorded):
    assert recorded.expert_LTK.shape == recorded.logits_LTK.shape == (2, 26 * 120, 4)
    assert (recorded.expert_LTK.dtype, recorded.logits_LTK.dtype) == (np.int16, np.float16)
    assert recorded.start_S.tolist() == list(range(0, 26 * 120, 120)) and recorded.block_L.tolist() == [1, 3]
    assert str(recorded.source).startswith("small_switch on embedded, token ids ")


def test_loads_are_those_of_the_encoder_as_it_was_trained(recorded, cache):
    """26 sequences take two batches."""
    encoder = Encoder(folder=FOLDER)
    source = TokenSource(EmbeddedCorpus(), 3800, cache, FOLDER)
    ids_BL = torch.from_numpy(source.batch(rank=0, iteration=0, world_size=1, batch_size=26, seq_len=120))
    with torch.inference_mode():
        encoder.hidden(ids_BL)
    for expert_TK, layer in zip(recorded.expert_LTK, encoder.moe.values(), strict=True):
        differing = np.abs(np.bincount(expert_TK[:, 0], minlength=128) - layer.rows_E.numpy()).sum()
        assert differing <= 4  # rounding may turn a near tie


def test_the_sample_is_what_the_script_writes(recorded):
    """On another machine or version rounding may turn near ties; another Python has another text."""
    sample = TokenTrace.read(DEFAULT_PATH)
    if EmbeddedCorpus().identity not in (FOLDER / "config.json").read_text():
        pytest.skip("the embedded corpus is another one here")
    num_tokens = recorded.expert_LTK.shape[1]
    assert (sample.expert_LTK[:, :num_tokens, 0] == recorded.expert_LTK[:, :, 0]).mean() > 0.999


def test_a_file_of_text_may_be_the_corpus(tmp_path):
    (tmp_path / "text.txt").write_text("An expression is evaluated from left to right.\n\n" * 30)
    assert open_corpus(str(tmp_path / "text.txt")) == FilesCorpus(str(tmp_path / "text.txt"))
    assert isinstance(open_corpus("embedded"), EmbeddedCorpus)
    main([str(tmp_path / "out.npz"), "--corpus", str(tmp_path / "text.txt"), "--tokens", "120"])
    assert TokenTrace.read(tmp_path / "out.npz").expert_LTK.shape == (2, 120, 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["out.npz", "--tokens", "0"], "--tokens is 0; it must be at least 1"),
        (["out.csv"], "OUT is out.csv; it must be an .npz in a folder that exists"),
        (["/nowhere/out.npz"], "OUT is /nowhere/out.npz; it must be an .npz in a folder that exists"),
    ],
)
def test_the_script_says_what_is_wrong(arguments, sentence, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert sentence in capsys.readouterr().err


def test_what_cannot_be_opened_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for options in (["--checkpoint", str(tmp_path)], ["--corpus", "no_such_text"]):
        with pytest.raises(SystemExit, match=r"^error: [^\n]*$"):
            main([str(tmp_path / "out.npz"), *options])
