"""Where the text comes from: a corpus is a name, an identity for caches and a stream of documents."""

import glob
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pydoc_data import topics

from pyarrow import ArrowInvalid

# Suffix -> the `datasets` reader and its options. Prose in .txt is wrapped, so a paragraph is a document, not a line.
READERS: dict[str, tuple[str, dict[str, str]]] = {
    ".txt": ("text", {"sample_by": "paragraph"}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}


class Corpus(ABC):
    """A stream of documents in a fixed order, each on one line, without empty ones."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name shown to people."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """String that differs whenever the documents may differ; caches are named by it."""

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Yield the documents."""

    def check(self) -> None:
        """Raise, cheaply, what the user has to correct before anything is launched."""
        return


class EmbeddedCorpus(Corpus):
    """The Python language reference, English prose that every Python installation carries (`pydoc_data.topics`)."""

    @property
    def name(self) -> str:
        """Name of the kind."""
        return "embedded"

    @cached_property
    def identity(self) -> str:
        """Hash of the text, which differs between Python versions."""
        return "embedded " + hashlib.sha256("\n".join(self.documents()).encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        """Yield one document per topic, without the rulers under its headings."""
        pages = (page for _, page in sorted(topics.topics.items()))
        return _one_line("\n".join(line for line in page.splitlines() if _has_word(line)) for page in pages)


@dataclass(frozen=True)
class HubCorpus(Corpus):
    """A data set of the Hugging Face hub, streamed from its parquet files.

    `config` is the folder of the data set's configuration, null where there is only one.
    """

    path: str
    config: str | None = None
    split: str = "train"
    revision: str = "refs/convert/parquet"
    text_column: str = "text"

    @property
    def name(self) -> str:
        """Last part of the hub path."""
        return Path(self.path).name

    @property
    def identity(self) -> str:
        """All the values that choose the text."""
        return repr(self)

    def documents(self) -> Iterator[str]:
        """Yield one document per row; RuntimeError if the hub or the data set cannot be read."""
        try:
            # `data_dir`, because the parquet branch has no card that names its configurations.
            rows = _stream(self.path, data_dir=self.config, split=self.split, revision=self.revision)
            yield from _texts(rows, self.text_column)
        except Exception as error:
            raise RuntimeError(
                f"data set {self.path} could not be read from the hub ({type(error).__name__}: {error}); "
                "use corpus=embedded, or corpus=files with a local copy"
            ) from error


@dataclass(frozen=True)
class FilesCorpus(Corpus):
    """Local files of one kind (.txt, .jsonl or .parquet): `path` is a file, a directory or a glob."""

    path: str | None
    text_column: str = "text"

    @property
    def name(self) -> str:
        """Name of the kind."""
        return "files"

    @property
    def identity(self) -> str:
        """The column and each file's path, size and time of change."""
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files()]
        return repr((self.text_column, stats))

    def documents(self) -> Iterator[str]:
        """Yield one document per paragraph (.txt) or row; ValueError if `text_column` is not one of strings."""
        files = self.files()
        reader, options = READERS[files[0].suffix]
        # The text reader names its only column itself.
        column = "text" if reader == "text" else self.text_column
        return _texts(_stream(reader, data_files=[str(file) for file in files], split="train", **options), column)

    def files(self) -> list[Path]:
        """Return the files in order; FileNotFoundError if none has contents, ValueError if not of one kind."""
        if self.path is None:
            raise ValueError("corpus.path must be given for corpus=files")
        if Path(self.path).is_dir():
            found = (file for file in Path(self.path).rglob("*") if file.suffix in READERS)
        else:
            found = map(Path, glob.glob(self.path, recursive=True))
        files = sorted(file for file in found if file.is_file() and file.stat().st_size > 0)
        allowed = ", ".join(READERS)
        if not files:
            raise FileNotFoundError(
                f"corpus.path {self.path} holds no text; give a file, directory or glob of {allowed}"
            )
        suffixes = sorted({file.suffix for file in files})
        if len(suffixes) > 1 or suffixes[0] not in READERS:
            raise ValueError(f"corpus.path {self.path} holds {', '.join(suffixes)}; give files of one of {allowed}")
        return files

    def check(self) -> None:
        """Raise FileNotFoundError or ValueError unless the files give at least one document."""
        try:
            first = next(self.documents(), None)
        except (ArrowInvalid, UnicodeDecodeError) as error:
            raise ValueError(f"corpus.path {self.path} cannot be read ({error})") from error
        if first is None:
            raise ValueError(f"corpus.path {self.path} holds no text; at least one non-empty document is needed")


def _stream(path: str, **options: object) -> Iterable[Mapping[str, object]]:
    """Open a data set without downloading it as a whole."""
    # Imported here because it takes seconds, which the embedded corpus need not pay.
    from datasets import load_dataset

    return load_dataset(path, streaming=True, **options)  # pyright: ignore


def _texts(rows: Iterable[Mapping[str, object]], column: str) -> Iterator[str]:
    """Yield one column of the rows as documents."""
    return _one_line(text for row in rows if (text := _cell(row, column)))


def _cell(row: Mapping[str, object], column: str) -> str | None:
    if column not in row:
        raise ValueError(f"corpus.text_column {column!r} is not a column of the data, which has {sorted(row)}")
    text = row[column]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"corpus.text_column {column!r} holds {type(text).__name__}; it must hold strings")
    return text


def _one_line(texts: Iterable[str]) -> Iterator[str]:
    """Collapse whitespace and skip what is then empty."""
    return (line for text in texts if (line := " ".join(text.split())))


def _has_word(line: str) -> bool:
    return any(character.isalnum() for character in line)
