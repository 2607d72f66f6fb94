"""Train the small Switch encoder that lies in workloads/trained/small_switch: a learned router without a download.

    python -m scripts.train_small_switch [--steps 3000] [--seed 0] [--balance 0.001] [--out FOLDER]

Masked-token objective on the embedded corpus, with Switch's load-balancing loss. Prints the loss and the loads, and
leaves a checkpoint in Hugging Face's layout. What it is good for, and what not: docs/small_switch.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn

from scripts.small_switch import JITTER, MODEL, Encoder, evaluate, loads
from scripts.training import (
    CONSOLE,
    MAX_FILE,
    SEQ_LEN,
    compute_alike,
    optimise,
    parse,
    provenance,
    read_corpus,
    save_held_out,
    save_tokenizer,
    show_loads,
    split,
    unigram_loss,
)
from workloads.checkpoint import SHIPPED

BATCH_SIZE, LEARNING_RATE = 16, 5e-3
EMBEDDING_SCALE = 0.1  # Switch draws it with 1, beside which what attention brings is too faint


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """Position biases must reach several units before a token sees its neighbours: they take larger steps."""
    biases = [value for name, value in module.named_parameters() if "relative_attention_bias" in name]
    others = [value for name, value in module.named_parameters() if "relative_attention_bias" not in name]
    return [{"params": others, "lr": LEARNING_RATE}, {"params": biases, "lr": 10 * LEARNING_RATE, "weight_decay": 0.0}]


def train(encoder: Encoder, tokens_N: torch.Tensor, start_S: torch.Tensor, args: argparse.Namespace) -> None:
    """Train the encoder; leaves it in evaluation mode."""
    encoder.module.shared.weight.data *= EMBEDDING_SCALE

    def losses(ids_BL: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        loss = encoder.loss(ids_BL, draw)
        return loss, args.balance * torch.stack([layer.balance_loss for layer in encoder.moe.values()]).sum()

    chosen = {"steps": args.steps, "batch_size": BATCH_SIZE, "seed": args.seed}
    optimise(encoder.module, _groups(encoder.module), losses, (tokens_N, start_S), **chosen)


def describe(encoder: Encoder, folder: Path, training: dict[str, Any]) -> None:
    """config.json: sizes as Hugging Face reads them, and how the weights came about, with their hashes."""
    config = encoder.module.config.to_dict()
    config |= {"architectures": ["SwitchTransformersEncoderModel"], "num_experts": MODEL.num_experts}
    config |= {"expert_capacity": SEQ_LEN, "router_jitter_noise": JITTER, "dtype": "float16"}
    config["training"] = provenance(folder, training)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the checkpoint."""
    args = parse(arguments, __doc__, SHIPPED["small_switch"], steps=3000, balance=0.001)
    compute_alike(args.seed)
    tokenizer, tokens_N, first_GBL = read_corpus(MODEL.vocab_size)
    start_S, held_out_PL = split(tokens_N)
    texts = {"benchmark": first_GBL, "held out": [held_out_PL]}
    encoder = Encoder(args.seed)
    found = {f"random, {name}": loads(encoder, text) for name, text in texts.items()}
    train(encoder, tokens_N, start_S, args)
    args.out.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(encoder.stored(), args.out, max_shard_size=MAX_FILE, safe_serialization=True)
    save_tokenizer(tokenizer, args.out)
    save_held_out(held_out_PL, args.out)
    stored = Encoder(folder=args.out)  # as a user reads it, rounded
    found |= {f"trained, {name}": loads(stored, text) for name, text in texts.items()}
    show_loads(found)
    losses = {name: evaluate(stored, torch.cat(text)) for name, text in texts.items()}
    losses["held out, by frequency alone"] = unigram_loss(tokens_N, start_S, held_out_PL, MODEL.vocab_size)
    CONSOLE.print("masked-token loss in nats:", losses)
    chosen = {"seed": args.seed, "steps": args.steps, "balance": args.balance}
    describe(encoder, args.out, {**chosen, "loss_nats": losses})


if __name__ == "__main__":
    main()
