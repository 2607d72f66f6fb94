"""Routing that other programs recorded, as a record that `router=token_trace` or `router=trace` replays.

    python -m scripts.import_routing vllm a.npy b.npy --num-experts 128 --out mine.npz
    python -m scripts.import_routing sglang recorded.pt --num-experts 256 --out mine.npz
    python -m scripts.import_routing sglang-counts stat.pt --out mine.csv.gz

vllm: one .npy a request, int [tokens, layers, K] (`--enable-return-routed-experts`); layers without experts are all
zeros, tokens from a prefix cache -1. sglang: what its expert-distribution recorder saves in mode `per_token`, each
record's `topk_ids_of_layer` [layers, tokens, K] with -1 for none. sglang-counts: the same in mode `stat`, whose
`logical_count` [steps, layers, E] has counts only. megatron: `torch.save` of `RouterReplay.get_recorded_data()`, a list
with [tokens, K] for each MoE layer. csv: a file with the columns layer, token, experts (ids with spaces between).
What the sources are is described in docs/routers.md. Files of torch are read without running code in them.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from routers.token_trace import TokenTrace
from routers.trace import COLUMNS


def _stored(path: Path) -> Any:
    """What torch stored: tensors in lists and dicts; anything else, which could run code, is refused."""
    try:
        return torch.load(path, weights_only=True)  # noqa: TID251  (the recorders have no other format)
    except Exception as error:  # torch raises many kinds; all mean the same to the user
        raise ValueError(f"it is no file of tensors ({type(error).__name__})") from error


def read_vllm(path: Path) -> list[np.ndarray]:
    """One sequence [L, T, K], without tokens that have no experts in some layer."""
    return [np.load(path, allow_pickle=False).transpose(1, 0, 2)]


def read_sglang(path: Path) -> list[np.ndarray]:
    """One [L, T, K] a forward pass."""
    records = _stored(path)
    records = records["records"] if isinstance(records, dict) else records
    return [np.asarray(record["topk_ids_of_layer"]) for record in records]


def read_megatron(path: Path) -> list[np.ndarray]:
    """All tokens as one sequence."""
    return [np.stack([np.asarray(expert_TK) for expert_TK in _stored(path)])]


def read_csv(path: Path) -> list[np.ndarray]:
    """All tokens as one sequence."""
    rows = pd.read_csv(path).sort_values(["layer", "token"])
    layers = [np.loadtxt(one["experts"].tolist(), dtype=np.int64, ndmin=2) for _, one in rows.groupby("layer")]
    return [np.stack(layers)]


READERS: dict[str, Callable[[Path], list[np.ndarray]]] = {
    "vllm": read_vllm,
    "sglang": read_sglang,
    "megatron": read_megatron,
    "csv": read_csv,
}


def without_gaps(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(expert_LTK, start_S, layer_L): parts [L, T, K] in a row, without layers and tokens that have no experts.

    A layer in which a token would have one expert several times has none: it is dense, and recorded as zeros. Raises
    ValueError for parts of different models, and where nothing is left.
    """
    shapes = {(len(part), part.shape[2]) for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"the parts have different (layers, experts of a token): {sorted(shapes)}")
    every_LTK = np.concatenate(parts, axis=1)
    sorted_LTK = np.sort(every_LTK, axis=2)
    repeats_L = (sorted_LTK[:, :, 1:] == sorted_LTK[:, :, :-1]).any(2).all(1) & (every_LTK >= 0).any((1, 2))
    layer_L = np.flatnonzero(~repeats_L if every_LTK.shape[2] > 1 else every_LTK.any((1, 2)))
    whole_T = (every_LTK[layer_L] >= 0).all((0, 2))
    if not len(layer_L) or not whole_T.any():
        raise ValueError("no layer or no token with experts is recorded")
    ends_S = np.cumsum([part.shape[1] for part in parts])
    kept_S = np.cumsum(np.concatenate([[0], whole_T]))[np.concatenate([[0], ends_S[:-1]])]
    return every_LTK[layer_L][:, whole_T], np.unique(kept_S), layer_L


def trace_of(parts: Sequence[np.ndarray], num_experts: int, source: str) -> TokenTrace:
    """A record for `router=token_trace`; its layers are numbered as they were recorded."""
    expert_LTK, start_S, layer_L = without_gaps(parts)
    if expert_LTK.max() >= num_experts:
        raise ValueError(f"expert {expert_LTK.max()} is recorded; --num-experts is {num_experts}")
    no_logits = np.empty(0, np.float16)
    numbers = np.array(num_experts)
    return TokenTrace(expert_LTK.astype(np.int16), no_logits, start_S, layer_L, numbers, np.array(source))


def counts_of(path: Path) -> pd.DataFrame:
    """Rows for `router=trace`: a step's tokens per expert, layer by layer, without steps and layers that have none."""
    stored: Any = _stored(path)
    count_ILE = np.asarray(stored["logical_count"])
    kept_L = np.flatnonzero(count_ILE.any((0, 2)))
    steps = [step_LE for step_LE in count_ILE[:, kept_L] if step_LE.any(1).all()]
    rows = [
        [len(tokens_E), int(layer), at, " ".join(map(str, tokens_E))]
        for at, step_LE in enumerate(steps)
        for layer, tokens_E in zip(kept_L, step_LE, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, write, and say what is in it; 2 for files that are not of the kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*READERS, "sglang-counts"])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--num-experts", type=int, help="of a layer; not for counts, which tell it")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.kind != "sglang-counts" and not given.num_experts:
        parser.error(f"--num-experts is needed: {given.kind} does not record it")
    try:
        if given.kind == "sglang-counts":
            rows = pd.concat([counts_of(path) for path in given.files], ignore_index=True)
            rows.to_csv(given.out, index=False)
            print(f"wrote {given.out}: {rows['layer'].nunique()} layers, {rows['iteration'].nunique()} steps")
            return 0
        parts = [part for path in given.files for part in READERS[given.kind](path)]
        trace = trace_of(parts, given.num_experts, f"{given.kind}: {', '.join(path.name for path in given.files)}")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        print(f"error: {given.kind} record {given.files[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    trace.write(given.out)
    layers, tokens, top_k = trace.expert_LTK.shape
    print(f"wrote {given.out}: {layers} layers, {tokens} tokens of {len(trace.start_S)} sequences, top-{top_k}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
