import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hydra.utils import instantiate

from workloads.corpus import Corpus, EmbeddedCorpus, FilesCorpus, HubCorpus

CONF = Path(__file__).parents[2] / "conf" / "corpus"
TEXTS = ["one  two\nthree", "", "four", "  five six "]
DOCUMENTS = ["one two three", "four", "five six"]


def write_parquet(path: Path, columns: dict[str, list]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def write_jsonl(path: Path, column: str = "text") -> Path:
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in TEXTS))
    return path


def test_embedded_corpus_is_ordered_prose_on_single_lines():
    documents = list(EmbeddedCorpus().documents())
    assert documents == list(EmbeddedCorpus().documents())
    assert sum(map(len, documents)) > 300_000
    assert all(document == " ".join(document.split()) and document for document in documents)
    assert documents[1].startswith("Assignment statements Assignment statements are used to (re)bind names")


def test_embedded_identity_follows_the_text(monkeypatch):
    before = EmbeddedCorpus().identity
    assert before == EmbeddedCorpus().identity
    monkeypatch.setattr("workloads.corpus.topics.topics", {"a": "Another Python\n**************"})
    assert list(EmbeddedCorpus().documents()) == ["Another Python"]
    assert EmbeddedCorpus().identity != before


@pytest.mark.parametrize("split_folder", ["train", "partial-train"])
def test_hub_corpus_reads_the_layout_of_a_parquet_branch(tmp_path, split_folder):
    write_parquet(tmp_path / "chosen" / split_folder / "0000.parquet", {"text": TEXTS[:2]})
    write_parquet(tmp_path / "chosen" / split_folder / "0001.parquet", {"text": TEXTS[2:]})
    write_parquet(tmp_path / "chosen" / "test" / "0000.parquet", {"text": ["held out"]})
    write_parquet(tmp_path / "other" / "train" / "0000.parquet", {"text": ["of another configuration"]})
    assert list(HubCorpus(str(tmp_path), config="chosen").documents()) == DOCUMENTS
    assert list(HubCorpus(str(tmp_path), config="chosen", split="test").documents()) == ["held out"]


def test_hub_corpus_with_one_configuration_needs_no_name(tmp_path):
    write_parquet(tmp_path / "plain_text" / "train" / "0000.parquet", {"sentence": TEXTS})
    assert list(HubCorpus(str(tmp_path), text_column="sentence").documents()) == DOCUMENTS
    with pytest.raises(RuntimeError, match=r"text_column 'text' is not a column of the data, which has \['sentence'\]"):
        list(HubCorpus(str(tmp_path)).documents())


def test_unreachable_hub_is_one_sentence_with_a_way_out(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=r"^data set a/b could not be read .*corpus=embedded, or corpus=files"):
        next(HubCorpus("a/b").documents())


def test_hub_identity_names_every_choice():
    choices = [HubCorpus("a/b"), HubCorpus("a/b", "c"), HubCorpus("a/b", split="test"), HubCorpus("a/b", revision="x")]
    assert len({corpus.identity for corpus in choices}) == 4


def test_files_of_each_kind(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("one two\nthree\n\n\nfour\n\nfive six\n")
    for path in (text, write_jsonl(tmp_path / "a.jsonl"), write_parquet(tmp_path / "a.parquet", {"text": TEXTS})):
        corpus = FilesCorpus(str(path))
        corpus.check()
        assert list(corpus.documents()) == DOCUMENTS


def test_directory_and_glob_are_read_in_order(tmp_path):
    (tmp_path / "README.md").write_text("not text")
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.txt").write_text("first")
    assert list(FilesCorpus(str(tmp_path)).documents()) == ["first", "second"]
    assert list(FilesCorpus(str(tmp_path / "*.txt")).documents()) == ["second"]


def test_files_identity_follows_the_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    before = FilesCorpus(str(path)).identity
    path.write_text("after it")
    assert FilesCorpus(str(path)).identity != before


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"corpus.path must be given for corpus=files"):
        FilesCorpus(None).check()
    with pytest.raises(FileNotFoundError, match=r"nowhere.txt holds no text; .*\.txt, \.jsonl, \.parquet"):
        FilesCorpus(str(tmp_path / "nowhere.txt")).check()
    (tmp_path / "a.csv").write_text("text\na")
    with pytest.raises(ValueError, match=r"holds \.csv; give files of one of \.txt, \.jsonl, \.parquet"):
        FilesCorpus(str(tmp_path / "a.csv")).check()
    (tmp_path / "a.txt").write_text("a")
    write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"holds \.jsonl, \.txt; give files of one of"):
        FilesCorpus(str(tmp_path)).check()


def test_wrong_contents_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"text_column 'text' is not a column of the data, which has \['prose'\]"):
        FilesCorpus(str(write_jsonl(tmp_path / "a.jsonl", column="prose"))).check()
    with pytest.raises(ValueError, match=r"text_column 'year' holds int; it must hold strings"):
        FilesCorpus(str(write_parquet(tmp_path / "a.parquet", {"year": [1999]})), text_column="year").check()
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"blank.txt holds no text"):
        FilesCorpus(str(tmp_path / "blank.txt")).check()
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"empty.txt holds no text"):
        FilesCorpus(str(tmp_path / "empty.txt")).check()
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"empty.jsonl holds no text"):
        FilesCorpus(str(tmp_path / "empty.jsonl")).check()
    write_parquet(tmp_path / "blank.parquet", {"text": ["", None]})
    with pytest.raises(ValueError, match=r"blank.parquet holds no text"):
        FilesCorpus(str(tmp_path / "blank.parquet")).check()


@pytest.mark.parametrize("name", ["broken.jsonl", "broken.parquet", "latin1.txt"])
def test_unreadable_contents_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        FilesCorpus(str(tmp_path / name)).check()


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_builds_a_corpus(path):
    corpus = instantiate(yaml.safe_load(path.read_text()))
    assert isinstance(corpus, Corpus)
    assert corpus.name == path.stem
