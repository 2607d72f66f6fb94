"""Record which experts a checkpoint's own router chooses for every token of a text: what router=token_trace replays.

    python -m scripts.record_token_trace OUT.npz [--checkpoint small_switch] [--corpus embedded] [--tokens 8000]

One process, every expert, no ranks. The checkpoint is small_switch, a folder or a hub name; the corpus a name of
conf/corpus, or a file, folder or glob of text. Keeps the four best experts of each token with their scores.

Letters in names: B sequences of a batch, T tokens, K experts kept, E experts, D d_model.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch import nn

from experiments.campaign import cache_dir
from experiments.configuration import instantiate
from routers.learned import LearnedRouter
from routers.token_trace import TokenTrace
from systems.base import LayerShape
from systems.dense import Dense
from systems.engines import find_engine
from workloads.batches import TokenSource, tokens_hash
from workloads.checkpoint import Checkpoint, open_checkpoint
from workloads.corpus import Corpus, FilesCorpus
from workloads.encoder import build_encoder
from workloads.model import ModelShape
from workloads.weights import CheckpointLayer

ROOT = Path(__file__).parents[1]
TOP, SEQ_LEN, BATCH_SIZE = 4, 120, 25
CPU = torch.device("cpu")


class RecordingLayer(nn.Module):
    """Dropless MoE layer of a checkpoint, [B, L, D] -> [B, L, D], that keeps each token's best experts."""

    def __init__(self, model: ModelShape, block: int, checkpoint: Checkpoint) -> None:
        super().__init__()
        weights = CheckpointLayer(model, block, checkpoint, torch.float32, CPU)
        shape = LayerShape(model.num_experts, model.d_model, model.d_ff, BATCH_SIZE * SEQ_LEN)
        alone = dist.ProcessGroup(0, 1)  # pyright: ignore[reportCallIssue]
        self.block, self.router = block, LearnedRouter(classifier=lambda _: weights.router())
        self.system = Dense(shape=shape, weights=weights, group=alone, engine=find_engine("grouped"))
        self.expert_TK: list[np.ndarray] = []
        self.logits_TK: list[np.ndarray] = []

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        x_TD = hidden_BLD.flatten(0, 1)
        routing = self.router.route(x_TD, layer=self.block, iteration=0)
        assert routing.logits_TE is not None
        logits_TK, expert_TK = routing.logits_TE.topk(min(TOP, routing.logits_TE.shape[1]))
        self.expert_TK.append(expert_TK.numpy().astype(np.int16))
        self.logits_TK.append(logits_TK.numpy().astype(np.float16))
        return self.system.forward(x_TD, routing).view_as(hidden_BLD)


def shape_of(checkpoint: Checkpoint) -> ModelShape:
    """The encoder's sizes, from the checkpoint's config.json."""
    config = json.loads((checkpoint.folder / "config.json").read_text())
    named = {"num_blocks": "num_layers", "sparse_step": "encoder_sparse_step"}
    same = ("num_experts", "d_model", "d_ff", "d_kv", "num_heads", "vocab_size")
    try:
        model = ModelShape(**{name: config[named.get(name, name)] for name in (*same, *named)})
    except KeyError as error:
        raise ValueError(f"checkpoint {checkpoint.folder}: config.json has no {error}") from error
    model.check()
    checkpoint.check(model)
    return model


def open_corpus(name: str) -> Corpus:
    """The corpus of conf/corpus/NAME.yaml, or text files; ValueError or OSError where there is no text."""
    node = ROOT / f"conf/corpus/{name}.yaml"
    corpus = instantiate(yaml.safe_load(node.read_text())) if node.is_file() else FilesCorpus(name)
    corpus.check()
    return corpus


@torch.inference_mode()
def record(checkpoint: Checkpoint, corpus: Corpus, num_tokens: int, cache: Path, name: str) -> TokenTrace:
    """The first sequences of the corpus, at least `num_tokens` tokens, through the encoder in float32.

    `name` is what the trace calls the checkpoint.
    """
    model = shape_of(checkpoint)
    layers = {block: RecordingLayer(model, block, checkpoint) for block in model.moe_blocks}
    encoder = build_encoder(model, layers.__getitem__, seed=0, dtype=torch.float32, device=CPU, checkpoint=checkpoint)
    num_sequences = -(-num_tokens // SEQ_LEN)
    tokens = TokenSource(corpus, model.vocab_size, cache, checkpoint.folder)
    ids_BL = tokens.batch(rank=0, iteration=0, world_size=1, batch_size=num_sequences, seq_len=SEQ_LEN)
    for part_BL in torch.from_numpy(ids_BL).split(BATCH_SIZE):
        encoder(input_ids=part_BL)
    return TokenTrace(
        expert_LTK=np.stack([np.concatenate(layer.expert_TK) for layer in layers.values()]),
        logits_LTK=np.stack([np.concatenate(layer.logits_TK) for layer in layers.values()]),
        start_S=np.arange(num_sequences) * SEQ_LEN,
        block_L=np.array(list(layers)),
        num_experts=np.array(model.num_experts),
        source=np.array(f"{name} on {corpus.name}, token ids {tokens_hash(ids_BL)}, float32, dropless"),
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits where it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="an .npz")
    parser.add_argument("--checkpoint", default="small_switch")
    parser.add_argument("--corpus", default="embedded")
    parser.add_argument("--tokens", type=int, default=8000, help="at least so many, in whole sequences of 120 (8000)")
    args = parser.parse_args(arguments)
    if args.tokens < 1:
        parser.error(f"--tokens is {args.tokens}; it must be at least 1")
    if args.out.suffix != ".npz" or not args.out.parent.is_dir():
        parser.error(f"OUT is {args.out}; it must be an .npz in a folder that exists")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Record and write; exits with one sentence where that fails."""
    args = parse(arguments)
    try:
        checkpoint, corpus = open_checkpoint(args.checkpoint), open_corpus(args.corpus)
        trace = record(checkpoint, corpus, args.tokens, cache_dir(), Path(args.checkpoint).name)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None
    trace.write(args.out)
    layers, tokens, kept = trace.expert_LTK.shape
    print(f"{tokens} tokens x {layers} layers x {kept} of {trace.num_experts} experts: {args.out}")


if __name__ == "__main__":
    main()
