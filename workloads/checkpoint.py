"""Read Switch checkpoints slice by slice: nothing but the asked-for part of a tensor is brought into memory."""

import json
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from workloads.model import ModelShape

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Checkpoints that come with the project (scripts/train_small_switch.py makes them): name -> folder.
SHIPPED = {"small_switch": Path(__file__).parent / "trained" / "small_switch"}


class Checkpoint:
    """A directory of safetensors with the parameter names of Hugging Face's Switch Transformers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _files(self) -> dict[str, str]:
        """Parameter name -> file."""
        if (self.folder / INDEX).exists():
            return json.loads((self.folder / INDEX).read_text())["weight_map"]
        with self._open(SINGLE) as file:
            return dict.fromkeys(file.keys(), SINGLE)

    def _open(self, name: str) -> Any:
        try:
            return safe_open(self.folder / name, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{self.folder / name} is not a safetensors file ({error})") from error

    @property
    def describing_files(self) -> list[Path]:
        """Small files that differ when the weights do: configuration (with their hashes, if ours) and index."""
        return [path for name in ("config.json", INDEX) if (path := self.folder / name).exists()]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str, rows: slice = slice(None), columns: slice | None = None) -> torch.Tensor:
        """Rows, and columns of a matrix, of one parameter; KeyError if the checkpoint lacks it."""
        with self._open(self._files[name]) as file:
            tensor = file.get_slice(name)
            return tensor[rows] if columns is None else tensor[rows, columns]

    def size(self, name: str) -> list[int]:
        """The shape of a parameter, without reading its numbers."""
        with self._open(self._files[name]) as file:
            return file.get_slice(name).get_shape()

    def check(self, model: ModelShape) -> None:
        """Raise ValueError naming the first parameter whose size is not the model's."""
        first, last = model.moe_blocks[0], model.moe_blocks[-1]
        wanted = {
            "shared.weight": [model.vocab_size, model.d_model],
            "encoder.block.0.layer.0.SelfAttention.q.weight": [model.num_heads * model.d_kv, model.d_model],
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": [32, model.num_heads],
            router_name(first): [model.num_experts, model.d_model],
            expert_name(last, model.num_experts - 1, "wi"): [model.d_ff, model.d_model],
            expert_name(last, model.num_experts - 1, "wo"): [model.d_model, model.d_ff],
        }
        for block in set(range(model.num_blocks)) - set(model.moe_blocks):
            wanted[f"encoder.block.{block}.layer.1.mlp.wi.weight"] = [model.d_ff, model.d_model]
        for name, size in wanted.items():
            found = self.size(name) if name in self else "missing"
            if found != size:
                raise ValueError(f"checkpoint {self.folder}: {name} is {found}; the model's sizes want {size}")
        surplus = f"encoder.block.{model.num_blocks}.layer.0.SelfAttention.q.weight"
        if surplus in self:
            raise ValueError(
                f"checkpoint {self.folder} has more encoder blocks than model.num_blocks ({model.num_blocks})"
            )


@cache
def open_checkpoint(name: str) -> Checkpoint:
    """A name of SHIPPED, a directory, or a hub name fetched once into the hub's cache (safetensors, never pickled).

    Raises ValueError in one sentence if there is none or it carries no safetensors.
    """
    folder = SHIPPED.get(name, Path(name))
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.safetensors*", "*.json", "spiece.model"]))
        except Exception as error:  # the hub client raises many kinds; all mean the same to the user
            kind = type(error).__name__
            raise ValueError(
                f"model.checkpoint {name!r} is no directory and could not be fetched from the hub ({kind})"
            ) from error
    if not (folder / INDEX).exists() and not (folder / SINGLE).exists():
        raise ValueError(f"checkpoint {folder} has no {SINGLE}; write it with save_pretrained first")
    return Checkpoint(folder)


def router_name(block: int) -> str:
    """Hugging Face's name of a block's router matrix [E, D]."""
    return f"encoder.block.{block}.layer.1.mlp.router.classifier.weight"


def expert_name(block: int, expert: int, matrix: str) -> str:
    """`matrix` is wi [F, D] or wo [D, F], as stored."""
    return f"encoder.block.{block}.layer.1.mlp.experts.expert_{expert}.{matrix}.weight"
