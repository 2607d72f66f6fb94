"""What the scripts that train the small models share: the text and its split, the optimiser's loop, loads and files.

Shapes: B sequences or P passages of L tokens each, S starts of passages, N tokens of the corpus, V vocabulary,
E experts, G ranks.
"""

import argparse
import hashlib
import math
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from workloads.batches import TokenSource
from workloads.checkpoint import HELD_OUT
from workloads.corpus import EmbeddedCorpus

SEQ_LEN, WORLD_SIZE, RANK_BATCH = 120, 4, 25  # a passage, and the benchmark's ranks and batch, for loads
HELD_OUT_EVERY, SHARED_TOKENS = 8, 10
WEIGHT_DECAY, WARMUP_SHARE, MAX_NORM = 0.1, 0.05, 1.0
STORED = torch.float16
MAX_FILE = "480KB"  # of tensors; names and sizes come on top
CONSOLE = Console()


def parse(arguments: list[str] | None, about: str | None, out: Path, steps: int, balance: float) -> argparse.Namespace:
    """The command line, with these defaults; exits where it makes no sense."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--balance", type=float, default=balance, help="weight of the load-balancing loss")
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args(arguments)
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}; it must be at least 1")
    return args


def compute_alike(seed: int) -> None:
    """Let the same seed give the same weights on the same machine."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums are added in an order that depends on the number of threads
    torch.manual_seed(seed)


def read_corpus(vocab_size: int) -> tuple[Tokenizer, torch.Tensor, list[torch.Tensor]]:
    """A tokenizer trained on the corpus, its tokens [N], and what each rank reads first in a benchmark: G x [B, L]."""
    with tempfile.TemporaryDirectory() as cache:
        source = TokenSource(EmbeddedCorpus(), vocab_size, cache)
        batch = {"iteration": 0, "world_size": WORLD_SIZE, "batch_size": RANK_BATCH, "seq_len": SEQ_LEN}
        first_GBL = [torch.from_numpy(source.batch(rank=rank, **batch)) for rank in range(WORLD_SIZE)]
        return source.tokenizer, torch.from_numpy(source.tokens(1).astype("int64")), first_GBL


def split(tokens_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Starts of training passages, and the held-out passages [P, L]: every eighth, less what training text repeats.

    The corpus quotes itself: a held-out passage that shares ten successive tokens with training text is left out.
    """
    period = HELD_OUT_EVERY * SEQ_LEN
    start_S = torch.arange(len(tokens_N) - SEQ_LEN + 1)
    start_S = start_S[start_S % period <= period - 2 * SEQ_LEN]
    passages_PL = tokens_N[: len(tokens_N) // SEQ_LEN * SEQ_LEN].view(-1, SEQ_LEN)
    known = set().union(*(_runs(tokens_N[at : at + period - SEQ_LEN]) for at in range(0, len(tokens_N), period)))
    held_out = passages_PL[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return start_S, torch.stack([passage_L for passage_L in held_out if known.isdisjoint(_runs(passage_L))])


def _runs(tokens_N: torch.Tensor) -> set[tuple[int, ...]]:
    """All runs of ten successive tokens."""
    if len(tokens_N) < SHARED_TOKENS:
        return set()
    return set(map(tuple, sliding_window_view(tokens_N.numpy(), SHARED_TOKENS).tolist()))


def unigram_loss(tokens_N: torch.Tensor, start_S: torch.Tensor, guessed: torch.Tensor, vocab_size: int) -> float:
    """Loss, in nats, of guessing these tokens by their frequency in the training text (add-one smoothing)."""
    ids_N = tokens_N[torch.unique(start_S[:, None] + torch.arange(SEQ_LEN))]
    count_V = torch.bincount(ids_N, minlength=vocab_size) + 1
    return float(-(count_V / count_V.sum()).log()[guessed].mean())


def optimise(
    module: nn.Module,
    groups: list[dict[str, Any]],
    losses: Callable[[torch.Tensor, torch.Generator], tuple[torch.Tensor, torch.Tensor]],
    passages: tuple[torch.Tensor, torch.Tensor],
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> None:
    """AdamW, linear warm-up, cosine decay to zero; leaves the module in evaluation mode.

    groups: parameters with their learning rates. losses: of passages [B, L], the prediction's and the weighted one of
    balance. passages: the tokens [N] and where a training passage may start [S].
    """
    tokens_N, start_S = passages
    module.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    warmup = WARMUP_SHARE * steps + 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    draw = torch.Generator().manual_seed(seed)
    for step in track(range(steps), "training", console=CONSOLE):
        start_B = start_S[torch.randint(len(start_S), (batch_size,), generator=draw)]
        loss, balance = losses(tokens_N[start_B[:, None] + torch.arange(SEQ_LEN)], draw)
        optimizer.zero_grad()
        (loss + balance).backward()
        nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            CONSOLE.print(f"step {step}: loss {loss.item():.3f} nats, and {balance.item():.4f} for balance")
    module.eval().requires_grad_(False)


def statistics(rows_GE: torch.Tensor) -> dict[str, float]:
    """Imbalance of one layer over all ranks' tokens; the last is that of ranks that host contiguous experts."""
    rows_E = rows_GE.sum(0).float()
    rows_G = rows_E.view(WORLD_SIZE, -1).sum(1)
    return {
        "busiest expert / mean": float(rows_E.max() / rows_E.mean()),
        "CV": float(rows_E.std(correction=0) / rows_E.mean()),
        "empty experts": int((rows_E == 0).sum()),
        "busiest rank / mean": float(rows_G.max() / rows_G.mean()),
    }


def show_loads(rows: dict[str, dict[int, torch.Tensor]]) -> None:
    """Print the statistics of rows [G, E] by model and block."""
    names = list(statistics(torch.ones(1, WORLD_SIZE)))
    table = Table("model and text", "block", *names, title=f"loads with {WORLD_SIZE} ranks")
    for name, layers in rows.items():
        for block, rows_GE in layers.items():
            table.add_row(name, str(block), *(f"{value:.3g}" for value in statistics(rows_GE).values()))
    CONSOLE.print(table)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """The tokenizer as Hugging Face reads it."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def save_held_out(held_out_PL: torch.Tensor, folder: Path) -> None:
    """The passages that were not trained on, as `Checkpoint.held_out` reads them: another Python has another text."""
    save_file({HELD_OUT: held_out_PL.short()}, folder / f"{HELD_OUT}.safetensors")


def provenance(folder: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """How the weights in a folder came about: what was chosen, text, versions and hashes."""
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))}
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")}
    versions = {"python": platform.python_version(), **versions}
    return {**chosen, "corpus": EmbeddedCorpus().identity, "versions": versions, "sha256": hashes}
