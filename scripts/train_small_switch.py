"""Train the small Switch encoder that lies in workloads/trained/small_switch: a learned router without a download.

    python -m scripts.train_small_switch [--steps 3000] [--seed 0] [--balance 0.001] [--out FOLDER]

Masked-token objective on the embedded corpus, with Switch's load-balancing loss. Prints the loss and the loads, and
leaves a checkpoint in Hugging Face's layout. What it is good for, and what not: docs/small_switch.md.
"""

import argparse
import hashlib
import json
import math
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from scripts.small_switch import (
    JITTER,
    MODEL,
    SEQ_LEN,
    WORLD_SIZE,
    Encoder,
    evaluate,
    loads,
    split,
    statistics,
    unigram_loss,
)
from workloads.batches import TokenSource
from workloads.checkpoint import SHIPPED
from workloads.corpus import EmbeddedCorpus

BATCH_SIZE = 16
LEARNING_RATE, WEIGHT_DECAY, WARMUP_SHARE, MAX_NORM = 5e-3, 0.1, 0.05, 1.0
EMBEDDING_SCALE = 0.1  # Switch draws it with 1, beside which what attention brings is too faint
MAX_FILE = "480KB"  # of tensors; names and sizes come on top
RANK_BATCH = 25  # the benchmark's batch, for the loads that are printed
CONSOLE = Console()


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """Position biases must reach several units before a token sees its neighbours: they take larger steps."""
    biases = [value for name, value in module.named_parameters() if "relative_attention_bias" in name]
    others = [value for name, value in module.named_parameters() if "relative_attention_bias" not in name]
    return [{"params": others, "lr": LEARNING_RATE}, {"params": biases, "lr": 10 * LEARNING_RATE, "weight_decay": 0.0}]


def train(encoder: Encoder, tokens_N: torch.Tensor, start_S: torch.Tensor, args: argparse.Namespace) -> None:
    """AdamW, linear warm-up, cosine decay to zero; leaves the encoder in evaluation mode."""
    module = encoder.module.requires_grad_(True).train()
    module.shared.weight.data *= EMBEDDING_SCALE
    optimizer = torch.optim.AdamW(_groups(module), weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    warmup = WARMUP_SHARE * args.steps + 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (1 + math.cos(math.pi * step / args.steps)) / 2)
    )
    draw = torch.Generator().manual_seed(args.seed)
    for step in track(range(args.steps), "training", console=CONSOLE):
        start_B = start_S[torch.randint(len(start_S), (BATCH_SIZE,), generator=draw)]
        loss = encoder.loss(tokens_N[start_B[:, None] + torch.arange(SEQ_LEN)], draw)
        balance = torch.stack([layer.balance_loss for layer in encoder.moe.values()])
        optimizer.zero_grad()
        (loss + args.balance * balance.sum()).backward()
        nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()
        if step % max(1, args.steps // 10) == 0:
            CONSOLE.print(
                f"step {step}: loss {loss:.3f} nats, balance losses " + ", ".join(f"{b:.2f}" for b in balance.tolist())
            )
    module.eval().requires_grad_(False)


def show_loads(rows: dict[str, dict[int, torch.Tensor]]) -> None:
    """Print the statistics of rows [G, E] by model and block."""
    names = list(statistics(torch.ones(1, MODEL.num_experts)))
    table = Table("model and text", "block", *names, title=f"loads with {WORLD_SIZE} ranks")
    for name, layers in rows.items():
        for block, rows_GE in layers.items():
            table.add_row(name, str(block), *(f"{value:.3g}" for value in statistics(rows_GE).values()))
    CONSOLE.print(table)


def save(encoder: Encoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Safetensors in files that the repository takes, and the tokenizer; never pickled."""
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(encoder.stored(), folder, max_shard_size=MAX_FILE, safe_serialization=True)
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def describe(encoder: Encoder, folder: Path, training: dict[str, Any]) -> None:
    """config.json: sizes as Hugging Face reads them, and how the weights came about, with their hashes."""
    config = encoder.module.config.to_dict()
    config |= {"architectures": ["SwitchTransformersEncoderModel"], "num_experts": MODEL.num_experts}
    config |= {"expert_capacity": SEQ_LEN, "router_jitter_noise": JITTER, "dtype": "float16"}
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))}
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")}
    config["training"] = {**training, "versions": {"python": platform.python_version(), **versions}, "sha256": hashes}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the checkpoint."""
    args = parse(arguments)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums are added in an order that depends on the number of threads
    torch.manual_seed(args.seed)
    tokenizer, tokens_N, first_GBL = read_corpus()
    start_S, held_out_PL = split(tokens_N)
    texts = {"benchmark": first_GBL, "held out": [held_out_PL]}
    encoder = Encoder(args.seed)
    found = {f"random, {name}": loads(encoder, text) for name, text in texts.items()}
    train(encoder, tokens_N, start_S, args)
    save(encoder, tokenizer, args.out)
    stored = Encoder(folder=args.out)  # as a user reads it, rounded
    found |= {f"trained, {name}": loads(stored, text) for name, text in texts.items()}
    show_loads(found)
    losses = {name: evaluate(stored, torch.cat(text)) for name, text in texts.items()}
    losses["held out, by frequency alone"] = unigram_loss(tokens_N, start_S, held_out_PL)
    CONSOLE.print("masked-token loss in nats:", losses)
    chosen = {"seed": args.seed, "steps": args.steps, "balance": args.balance}
    describe(encoder, args.out, {**chosen, "corpus": EmbeddedCorpus().identity, "loss_nats": losses})


def read_corpus() -> tuple[Tokenizer, torch.Tensor, list[torch.Tensor]]:
    """A tokenizer trained on the corpus, its tokens [N], and what each rank reads first in a benchmark: G x [B, L]."""
    with tempfile.TemporaryDirectory() as cache:
        source = TokenSource(EmbeddedCorpus(), MODEL.vocab_size, cache)
        batch = {"iteration": 0, "world_size": WORLD_SIZE, "batch_size": RANK_BATCH, "seq_len": SEQ_LEN}
        first_GBL = [torch.from_numpy(source.batch(rank=rank, **batch)) for rank in range(WORLD_SIZE)]
        return source.tokenizer, torch.from_numpy(source.tokens(1).astype("int64")), first_GBL


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits where it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--balance", type=float, default=0.001, help="alpha of the load-balancing loss")
    parser.add_argument("--out", type=Path, default=SHIPPED["small_switch"])
    args = parser.parse_args(arguments)
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}; it must be at least 1")
    return args


if __name__ == "__main__":
    main()
