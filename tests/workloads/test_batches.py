import hashlib
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from workloads import batches
from workloads.batches import (
    TokenSource,
    check_shares,
    first_sequence,
    load_tokens,
    sequences_of_ranks,
    token_batch,
    tokens_hash,
)
from workloads.corpus import Corpus, EmbeddedCorpus

# Every token is its own position, so that a batch shows where it was read.
POSITIONS = np.arange(100_000, dtype=np.int32)
POINTS = {
    "rank": st.integers(0, 3),
    "iteration": st.integers(0, 50),
    "batch_size": st.integers(1, 6),
    "seq_len": st.integers(1, 40),
    "seed": st.integers(0, 10**9),
}


class CountingCorpus(Corpus):
    """Endless: document i is the word i % 10, twice."""

    name = "counting"  # pyright: ignore[reportAssignmentType]
    identity = "counting"  # pyright: ignore[reportAssignmentType]

    def __init__(self, num_documents: int = 10**9) -> None:
        self.num_documents = num_documents
        self.num_read = 0

    def documents(self) -> Iterator[str]:
        for i in range(self.num_documents):
            self.num_read += 1
            yield f"{i % 10} {i % 10}"


def word_tokenizer() -> Tokenizer:
    vocab = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {str(i): i + 3 for i in range(10)}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def test_small_stream_by_hand():
    # 11 tokens, L=4: a pass starts at offset 0..3 and holds (11 - 3) // 4 = 2 sequences.
    # Pass 1 starts at 1_000_003 % 4 = 3, pass 2 at 2_000_006 % 4 = 2.
    batch_BL = token_batch(POSITIONS[:11], rank=0, iteration=0, world_size=1, batch_size=5, seq_len=4)
    assert batch_BL.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [3, 4, 5, 6], [7, 8, 9, 10], [2, 3, 4, 5]]


def test_sequences_are_dealt_to_ranks_then_iterations():
    def starts(rank: int, iteration: int) -> list[int]:
        batch_BL = token_batch(POSITIONS, rank=rank, iteration=iteration, world_size=2, batch_size=2, seq_len=10)
        return batch_BL[:, 0].tolist()

    assert [starts(0, 0), starts(1, 0), starts(0, 1), starts(1, 1)] == [[0, 10], [20, 30], [40, 50], [60, 70]]


def test_seed_shifts_the_first_sequence():
    batch_BL = token_batch(POSITIONS, rank=0, iteration=0, world_size=1, batch_size=1, seq_len=10, seed=1)
    assert batch_BL[0, 0] == 79_190
    assert first_sequence(0) == 0
    assert len({first_sequence(seed) for seed in range(2**14)}) == 2**14


def test_stream_of_exactly_one_sequence():
    batch_BL = token_batch(POSITIONS[:8], rank=3, iteration=2, world_size=4, batch_size=2, seq_len=8)
    assert batch_BL.tolist() == [list(range(8))] * 2


def test_too_few_tokens():
    with pytest.raises(ValueError, match=r"the corpus has 7 tokens; it must have at least seq_len \(8\)"):
        token_batch(POSITIONS[:7], rank=0, iteration=0, world_size=1, batch_size=1, seq_len=8)


@given(num_tokens=st.integers(40, 2000), **POINTS)
def test_batches_have_their_shape_stay_in_the_stream_and_are_contiguous(num_tokens, **point):
    tokens = POSITIONS[:num_tokens]
    batch_BL = token_batch(tokens, world_size=4, **point)
    assert batch_BL.shape == (point["batch_size"], point["seq_len"])
    assert batch_BL.dtype == np.int64
    assert batch_BL.min() >= 0 and batch_BL.max() < num_tokens
    assert np.all(np.diff(batch_BL, axis=1) == 1)
    assert np.array_equal(batch_BL, token_batch(tokens, world_size=4, **point))


@given(
    world_size=st.integers(1, 8),
    batch_size=st.integers(1, 6),
    seq_len=st.integers(1, 40),
    iteration=st.integers(0, 3),
)
def test_ranks_and_iterations_share_no_token_in_a_large_corpus(world_size, batch_size, seq_len, iteration):
    ranks_and_iterations = [(rank, i) for rank in range(world_size) for i in (iteration, iteration + 1)]
    starts = [
        start
        for rank, i in ranks_and_iterations
        for start in token_batch(
            POSITIONS, rank=rank, iteration=i, world_size=world_size, batch_size=batch_size, seq_len=seq_len
        )[:, 0]
    ]
    assert len(starts) == 1 or np.diff(np.sort(starts)).min() >= seq_len


@given(seq_len=st.integers(2, 40), num_passes=st.integers(2, 40))
def test_a_repeated_pass_packs_other_sequences(seq_len, num_passes):
    num_tokens = 6 * seq_len - 1  # 5 sequences a pass
    num_passes = min(num_passes, seq_len)
    batch_BL = token_batch(
        POSITIONS[:num_tokens], rank=0, iteration=0, world_size=1, batch_size=5 * num_passes, seq_len=seq_len
    )
    assert len(set(batch_BL[:, 0].tolist())) == 5 * num_passes


def test_hash_depends_on_tokens_and_shape_only():
    batch_BL = np.arange(6).reshape(2, 3)
    expected = hashlib.sha256(b"(2, 3)" + struct.pack("<6q", *range(6))).hexdigest()[:16]
    assert tokens_hash(batch_BL) == expected
    assert tokens_hash(np.asfortranarray(batch_BL)) == tokens_hash(batch_BL)
    assert len({tokens_hash(x) for x in (batch_BL, batch_BL.T, batch_BL.reshape(3, 2), batch_BL + 1)}) == 4


def test_documents_are_joined_by_their_end(tmp_path):
    tokens = load_tokens(CountingCorpus(3), word_tokenizer(), 100, tmp_path)
    assert tokens.tolist() == [3, 3, 1, 4, 4, 1, 5, 5, 1]
    assert tokens.dtype == np.int32


def test_tokens_are_cut_and_cached(tmp_path):
    corpus = CountingCorpus()
    tokens = load_tokens(corpus, word_tokenizer(), 4, tmp_path)
    assert tokens.tolist() == [3, 3, 1, 4]
    num_read = corpus.num_read
    assert num_read <= batches.DOCUMENTS_PER_CHUNK
    assert load_tokens(corpus, word_tokenizer(), 4, tmp_path).tolist() == tokens.tolist()
    assert corpus.num_read == num_read
    assert len(load_tokens(corpus, word_tokenizer(), 5, tmp_path)) == 5


def test_empty_corpus_has_no_tokens(tmp_path):
    assert len(load_tokens(CountingCorpus(0), word_tokenizer(), 4, tmp_path)) == 0


def test_tokenizer_without_an_end_of_document(tmp_path):
    tokenizer = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    with pytest.raises(ValueError, match="the checkpoint's tokenizer has no token that ends a document, of </s>"):
        load_tokens(CountingCorpus(), tokenizer, 4, tmp_path)


def source_from_checkpoint(corpus: Corpus, tmp_path) -> TokenSource:
    word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return TokenSource(corpus, 13, tmp_path / "cache", checkpoint=tmp_path)


@pytest.mark.parametrize("num_documents", [50, 10**9])
def test_source_gives_the_same_batch_whatever_was_asked_before(tmp_path, monkeypatch, num_documents):
    monkeypatch.setattr(batches, "MIN_TOKENS", 16)
    monkeypatch.setattr(batches, "NUM_SEEDS", 8)
    fresh = source_from_checkpoint(CountingCorpus(num_documents), tmp_path)
    used = source_from_checkpoint(CountingCorpus(num_documents), tmp_path)
    point = {"rank": 1, "world_size": 2, "batch_size": 3, "seq_len": 7, "seed": 3}
    for iteration in range(10):
        used.batch(iteration=iteration, **point)
    assert np.array_equal(used.batch(iteration=4, **point), fresh.batch(iteration=4, **point))


def test_source_does_not_read_an_exhausted_corpus_again(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MIN_TOKENS", 16)
    corpus = CountingCorpus(50)
    source = source_from_checkpoint(corpus, tmp_path)
    assert len(source.tokens(1000)) == len(source.tokens(5000)) == 150
    assert corpus.num_read == 50


def test_source_of_the_embedded_corpus(tmp_path):
    source = TokenSource(EmbeddedCorpus(), 1000, tmp_path)
    batch_BL = source.batch(rank=0, iteration=0, world_size=4, batch_size=8, seq_len=120)
    assert batch_BL.shape == (8, 120)
    assert batch_BL.max() < 1000
    assert len(np.unique(batch_BL)) > 100


@given(batch_size=st.integers(1, 500), shares=st.lists(st.floats(0.001, 1), max_size=6))
def test_every_rank_has_its_share_of_a_batch(batch_size, shares):
    shares = [*shares, 1.0]
    check_shares(shares, len(shares))
    sequences_G = sequences_of_ranks(batch_size, shares, len(shares))
    assert max(sequences_G) == sequences_G[-1] == batch_size and min(sequences_G) >= 1
    for share, sequences in zip(shares, sequences_G, strict=True):
        assert sequences == 1 or abs(sequences - share * batch_size) <= 0.5


def test_ranks_without_shares_have_whole_batches():
    check_shares(None, 3)
    assert sequences_of_ranks(7, None, 3) == [7, 7, 7]
