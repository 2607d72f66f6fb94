"""Token batches: which sequences each rank reads in each iteration, the same for every system.

Shapes: B sequences per rank, L tokens per sequence.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from workloads.corpus import Corpus
from workloads.tokenizer import cache_key, end_of_document, load_or_train_tokenizer, write_once

DOCUMENTS_PER_CHUNK = 256
# Primes, so that they share no factor with a sequence length or with NUM_SEEDS.
OFFSET_STRIDE = 1_000_003
SEED_STRIDE = 7919
# Starting sequences that seeds can choose; a bound, because a large seed must not ask for a whole corpus of the hub.
NUM_SEEDS = 2**14
MIN_TOKENS = 2**20


def check_shares(shares: Sequence[float] | None, world_size: int) -> None:
    """Raise ValueError, in one sentence, unless every rank has a share of a batch, and one of them all of it."""
    if shares is None:
        return
    if len(shares) != world_size:
        raise ValueError(f"batch_shares has {len(shares)} numbers; it must have one for each of {world_size} ranks")
    if max(shares) != 1 or min(shares) <= 0:
        raise ValueError(f"batch_shares is {shares}; it must be numbers above 0 and up to 1, of which one is 1")


def sequences_of_ranks(batch_size: int, shares: Sequence[float] | None, world_size: int) -> list[int]:
    """Sequences of each rank: its share of a batch, rounded, and one at least."""
    return [max(1, round(share * batch_size)) for share in shares or [1] * world_size]


def load_tokens(
    corpus: Corpus, tokenizer: Tokenizer, num_tokens_wanted: int, cache_dir: str | Path
) -> NDArray[np.int32]:
    """Return the corpus's first `num_tokens_wanted` tokens, or all it has, mapped from a file in `cache_dir`.

    Each document is followed by </s>.
    """
    key = cache_key(corpus.identity, tokenizer.to_str(), num_tokens_wanted)
    path = Path(cache_dir) / f"tokens-{key}.npy"
    write_once(path, lambda file: np.save(file, _tokenize(corpus, tokenizer, num_tokens_wanted), allow_pickle=False))
    return np.load(path, mmap_mode="r", allow_pickle=False)


def token_batch(
    tokens: NDArray[np.int32],
    *,
    rank: int,
    iteration: int,
    world_size: int,
    batch_size: int,
    seq_len: int,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return the [B, L] tokens of a rank's iteration, a function of its arguments alone.

    Sequences are numbered over iterations, ranks and batch places; a pass over a corpus that is too small starts at
    another token than the pass before, so that it packs other sequences. ValueError if there are fewer than L tokens.
    """
    if len(tokens) < seq_len:
        raise ValueError(f"the corpus has {len(tokens)} tokens; it must have at least seq_len ({seq_len})")
    first = first_sequence(seed) + (iteration * world_size + rank) * batch_size
    start_B = _sequence_starts(first + np.arange(batch_size), len(tokens), seq_len)
    return tokens[start_B[:, None] + np.arange(seq_len)].astype(np.int64)


def first_sequence(seed: int) -> int:
    """Return the number of the sequence with which a seed starts: 0 for seed 0, different for 2**14 seeds in a row."""
    return seed * SEED_STRIDE % NUM_SEEDS


def tokens_hash(batch: NDArray[np.int64]) -> str:
    """Return 16 hexadecimal digits that stand for the batch, the same on every machine."""
    return hashlib.sha256(repr(batch.shape).encode() + batch.astype("<i8").tobytes()).hexdigest()[:16]


class TokenSource:
    """Batches of one corpus, read with the checkpoint's tokenizer or one trained on the corpus."""

    def __init__(
        self, corpus: Corpus, vocab_size: int, cache_dir: str | Path, checkpoint: str | Path | None = None
    ) -> None:
        self.corpus = corpus
        self.cache_dir = cache_dir
        self.tokenizer = load_or_train_tokenizer(corpus, vocab_size, cache_dir, checkpoint)
        self._tokens = np.empty(0, np.int32)
        self._num_tokens_asked = 0

    def batch(
        self, *, rank: int, iteration: int, world_size: int, batch_size: int, seq_len: int, seed: int = 0
    ) -> NDArray[np.int64]:
        """Return `token_batch` of as many tokens as the iteration needs: [B, L]."""
        num_sequences = first_sequence(seed) + (iteration + 1) * world_size * batch_size
        return token_batch(
            # One sequence more, the room that later passes need for their offset.
            self.tokens((num_sequences + 1) * seq_len),
            rank=rank,
            iteration=iteration,
            world_size=world_size,
            batch_size=batch_size,
            seq_len=seq_len,
            seed=seed,
        )

    def tokens(self, num_tokens_wanted: int) -> NDArray[np.int32]:
        """Return at least the tokens wanted, or all there are."""
        if num_tokens_wanted > self._num_tokens_asked and len(self._tokens) == self._num_tokens_asked:
            # Powers of two, so that successive iterations seldom read the corpus anew.
            self._num_tokens_asked = max(MIN_TOKENS, 1 << (num_tokens_wanted - 1).bit_length())
            self._tokens = load_tokens(self.corpus, self.tokenizer, self._num_tokens_asked, self.cache_dir)
        return self._tokens


def _sequence_starts(sequence_B: NDArray[np.int64], num_tokens: int, seq_len: int) -> NDArray[np.int64]:
    """Return where each sequence starts; every pass holds as many sequences as fit after the largest offset."""
    num_offsets = min(seq_len, num_tokens - seq_len + 1)
    sequences_per_pass = (num_tokens - num_offsets + 1) // seq_len
    pass_B, place_B = np.divmod(sequence_B, sequences_per_pass)
    return pass_B * OFFSET_STRIDE % num_offsets + place_B * seq_len


def _tokenize(corpus: Corpus, tokenizer: Tokenizer, num_tokens_wanted: int) -> NDArray[np.int32]:
    """Return the first tokens of the corpus; asserts that all ids belong to the tokenizer's vocabulary."""
    chunks = [np.empty(0, np.int32)]
    num_tokens = 0
    for chunk in _token_chunks(corpus, tokenizer):
        chunks.append(chunk)
        num_tokens += len(chunk)
        if num_tokens >= num_tokens_wanted:
            break
    tokens = np.concatenate(chunks)[:num_tokens_wanted]
    assert np.all((tokens >= 0) & (tokens < tokenizer.get_vocab_size()))
    return tokens


def _token_chunks(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[NDArray[np.int32]]:
    end_id = end_of_document(tokenizer)
    documents = corpus.documents()
    while batch := list(islice(documents, DOCUMENTS_PER_CHUNK)):
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        yield np.concatenate([np.array([*encoding.ids, end_id], np.int32) for encoding in encodings])
