"""The tokenizer: a checkpoint's own, or one trained once on the corpus and cached."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFKC
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import BpeTrainer

from workloads.corpus import Corpus

END_OF_DOCUMENT = "</s>"
# What other families' tokenizers have for it.
ENDS = (END_OF_DOCUMENT, "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|return|>", "[e~[")
# The ids 0, 1, 2 are T5's.
SPECIAL_TOKENS = ["<pad>", END_OF_DOCUMENT, "<unk>"]
# A corpus of the hub is far larger than a vocabulary needs: training stops after so many characters.
TRAINING_CHARACTERS = 20_000_000
# Rare letters become <unk>, lest a multilingual corpus fill the vocabulary with single letters.
ALPHABET_SHARE = 0.25


def load_or_train_tokenizer(
    corpus: Corpus, vocab_size: int, cache_dir: str | Path, checkpoint: str | Path | None = None
) -> Tokenizer:
    """Return the checkpoint's tokenizer, or without a checkpoint one trained on the corpus (cached in `cache_dir`).

    FileNotFoundError if the checkpoint has no tokenizer; ValueError if the tokenizer has more than `vocab_size` tokens.
    """
    if checkpoint is not None:
        tokenizer = _load_from_checkpoint(Path(checkpoint))
    else:
        path = Path(cache_dir) / f"tokenizer-{cache_key(corpus.identity, vocab_size)}.json"
        write_once(path, lambda file: _train(corpus, vocab_size).save(str(file)))
        tokenizer = Tokenizer.from_file(str(path))
    num_tokens = tokenizer.get_vocab_size()
    if num_tokens > vocab_size:
        raise ValueError(
            f"vocab_size ({vocab_size}) must be at least {num_tokens}, the number of tokens of {checkpoint}"
        )
    return tokenizer


def end_of_document(tokenizer: Tokenizer) -> int:
    """The token that follows each document; ValueError for a tokenizer that has none of ENDS."""
    for end in ENDS:
        if (token := tokenizer.token_to_id(end)) is not None:
            return token
    raise ValueError(f"the checkpoint's tokenizer has no token that ends a document, of {', '.join(ENDS)}")


def cache_key(*values: object) -> str:
    """Return 16 hexadecimal digits that stand for the values."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def write_once(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make the file unless it is there; ranks that ask at once wait for the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists():
            return
        unfinished = path.with_name(f"unfinished-{os.getpid()}-{path.name}")
        try:
            write(unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def _load_from_checkpoint(checkpoint: Path) -> Tokenizer:
    if (checkpoint / "tokenizer.json").exists():
        return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    if not (checkpoint / "spiece.model").exists():
        raise FileNotFoundError(f"checkpoint {checkpoint} has no tokenizer; it needs tokenizer.json or spiece.model")
    from transformers import AutoTokenizer

    try:
        # Said aloud, because the default asks on a terminal whether the checkpoint's own code may run.
        loaded = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
        return loaded.backend_tokenizer
    except Exception as error:
        raise ValueError(
            f"checkpoint {checkpoint} has a spiece.model that cannot be converted ({type(error).__name__}: {error}); "
            "install sentencepiece, or put the model's tokenizer.json beside it"
        ) from error


def _train(corpus: Corpus, vocab_size: int) -> Tokenizer:
    """Train byte-pair encoding behind T5's normalizer and pre-tokenizer; the same text gives the same tokenizer.

    T5's own Unigram is not used: its trainer in `tokenizers` adds floats in hash order, so that no two runs agree.
    """
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.normalizer = NFKC()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = MetaspaceDecoder()  # pyright: ignore[reportAttributeAccessIssue]
    texts = list(_training_text(corpus))
    alphabet = _alphabet(texts, int(ALPHABET_SHARE * vocab_size))
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def _alphabet(texts: list[str], num_letters: int) -> list[str]:
    """Return the most frequent characters; the trainer's own limit breaks ties in hash order."""
    counts = Counter("▁")
    for text in texts:
        counts.update(unicodedata.normalize("NFKC", text).replace(" ", "▁"))
    return sorted(counts, key=lambda character: (-counts[character], character))[:num_letters]


def _training_text(corpus: Corpus) -> Iterator[str]:
    characters_left = TRAINING_CHARACTERS
    for document in corpus.documents():
        yield document[:characters_left]
        characters_left -= len(document)
        if characters_left <= 0:
            return
