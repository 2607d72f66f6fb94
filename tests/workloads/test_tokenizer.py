from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workloads import tokenizer as tokenizer_module
from workloads.corpus import Corpus, EmbeddedCorpus
from workloads.tokenizer import SPECIAL_TOKENS, load_or_train_tokenizer, write_once


class ListCorpus(Corpus):
    name = "list"  # pyright: ignore[reportAssignmentType]

    def __init__(self, documents: list[str]) -> None:
        self._documents = documents

    @property
    def identity(self) -> str:
        return repr(self._documents)

    def documents(self) -> Iterator[str]:
        return iter(self._documents)


def test_two_trainings_give_the_same_file(tmp_path):
    for run in ("first", "second"):
        load_or_train_tokenizer(EmbeddedCorpus(), 4000, tmp_path / run)
    (first,), (second,) = ((tmp_path / run).glob("*.json") for run in ("first", "second"))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_vocabulary_is_full_and_special_ids_are_those_of_t5(tmp_path):
    tokenizer = load_or_train_tokenizer(EmbeddedCorpus(), 4000, tmp_path)
    assert tokenizer.get_vocab_size() == 4000
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    ids = tokenizer.encode("The assignment of a value to a ﬁeld").ids
    assert max(ids) < 4000 and min(ids) > 2
    assert tokenizer.decode(ids) == "The assignment of a value to a field"


def test_rare_letters_become_unknown_and_never_overfill_the_vocabulary(tmp_path):
    rare = "".join(chr(0x4E00 + i) for i in range(500))
    tokenizer = load_or_train_tokenizer(ListCorpus(["the cat and the hat " * 5 + rare]), 40, tmp_path)
    assert tokenizer.get_vocab_size() <= 40
    assert tokenizer.encode(rare[-1]).ids[-1] == 2
    assert 2 not in tokenizer.encode("the cat").ids


def test_cache_is_read_instead_of_training_again(tmp_path, monkeypatch):
    first = load_or_train_tokenizer(EmbeddedCorpus(), 500, tmp_path)
    monkeypatch.setattr(tokenizer_module, "_train", lambda *_: pytest.fail("trained again"))
    assert load_or_train_tokenizer(EmbeddedCorpus(), 500, tmp_path).to_str() == first.to_str()


def test_cache_differs_by_corpus_and_vocabulary(tmp_path):
    for corpus in (ListCorpus(["a b a b"]), ListCorpus(["c d c d"])):
        for vocab_size in (20, 30):
            load_or_train_tokenizer(corpus, vocab_size, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_training_text_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "TRAINING_CHARACTERS", 6)
    tokenizer = load_or_train_tokenizer(ListCorpus(["aaaa", "bbxx", "cccc"]), 40, tmp_path)
    letters = {letter for token in set(tokenizer.get_vocab()) - set(SPECIAL_TOKENS) for letter in token}
    assert letters == {"▁", "a", "b"}


def test_checkpoint_tokenizer_is_used(tmp_path):
    saved = load_or_train_tokenizer(ListCorpus(["a b a b"]), 20, tmp_path / "cache")
    saved.save(str(tmp_path / "tokenizer.json"))
    loaded = load_or_train_tokenizer(EmbeddedCorpus(), 20, tmp_path / "other", checkpoint=tmp_path)
    assert loaded.to_str() == saved.to_str()
    assert not (tmp_path / "other").exists()
    num_tokens = saved.get_vocab_size()
    with pytest.raises(ValueError, match=rf"vocab_size \(3\) must be at least {num_tokens}"):
        load_or_train_tokenizer(EmbeddedCorpus(), 3, tmp_path / "other", checkpoint=tmp_path)


def test_checkpoint_without_a_usable_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer; it needs tokenizer.json or spiece.model"):
        load_or_train_tokenizer(EmbeddedCorpus(), 500, tmp_path / "cache", checkpoint=tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"broken")
    (tmp_path / "config.json").write_text('{"model_type": "switch_transformers"}')
    with pytest.raises(ValueError, match=r"has a spiece.model that cannot be converted"):
        load_or_train_tokenizer(EmbeddedCorpus(), 500, tmp_path / "cache", checkpoint=tmp_path)


def test_checkpoint_with_only_a_sentencepiece_model(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    with open(tmp_path / "spiece.model", "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(document[:4000] for document in EmbeddedCorpus().documents()),
            model_writer=model,
            vocab_size=500,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    (tmp_path / "config.json").write_text('{"model_type": "switch_transformers"}')
    tokenizer = load_or_train_tokenizer(EmbeddedCorpus(), 600, tmp_path / "cache", checkpoint=tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    text = "Assignment statements are used to bind names"
    assert tokenizer.encode(text, add_special_tokens=False).ids == reference.encode(text)


def test_only_one_of_many_writes(tmp_path):
    path, writers = tmp_path / "folder" / "file", []

    def write(file: Path) -> None:
        writers.append(file)
        file.write_text("whole")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write_once(path, write), range(8)))
    assert len(writers) == 1
    assert path.read_text() == "whole"


def test_failed_write_leaves_nothing_behind(tmp_path):
    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_once(tmp_path / "file", fail)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
