"""Read checkpoints slice by slice: nothing but the asked-for part of a tensor is brought into memory."""

import json
import threading
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from workloads.layouts import experts_of, model_type, sizes, surplus
from workloads.model import ModelShape

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
HELD_OUT = "held_out"  # a file, and the tensor [P, L] in it, of passages that a model was not trained on
# Checkpoints that come with the project (scripts/train_small_*.py make them): name -> folder.
SHIPPED = {name: Path(__file__).parent / "trained" / name for name in ("small_switch", "small_decoder")}


class Checkpoint:
    """A directory of safetensors with the parameter names of Hugging Face's models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened = threading.local()  # by file name: opening one reads the names of all its parameters

    @cached_property
    def _files(self) -> dict[str, str]:
        """Parameter name -> file."""
        if (self.folder / INDEX).exists():
            return json.loads((self.folder / INDEX).read_text())["weight_map"]
        return dict.fromkeys(self._open(SINGLE).keys(), SINGLE)

    def _open(self, name: str) -> Any:
        opened = vars(self._opened)
        try:
            if name not in opened:
                opened[name] = safe_open(self.folder / name, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{self.folder / name} is not a safetensors file ({error})") from error
        return opened[name]

    @property
    def describing_files(self) -> list[Path]:
        """Small files that differ when the weights do: configuration (with their hashes, if ours) and index."""
        return [path for name in ("config.json", INDEX) if (path := self.folder / name).exists()]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str, *places: Any) -> torch.Tensor:
        """These places of one parameter, or all; KeyError if the checkpoint lacks it."""
        return self._open(self._files[name]).get_slice(name)[places or slice(None)]

    def size(self, name: str) -> list[int]:
        """The shape of a parameter, without reading its numbers."""
        return self._open(self._files[name]).get_slice(name).get_shape()

    def held_out(self) -> torch.Tensor | None:
        """Tokens [P, L], int64, that the model was not trained on, where the checkpoint brings them along."""
        name = f"{HELD_OUT}.safetensors"
        return self._open(name).get_tensor(HELD_OUT).long() if (self.folder / name).exists() else None

    def check(self, model: ModelShape) -> None:
        """Raise ValueError naming the family, the kind of expert or the first parameter that is not the model's."""
        self._check_kind(model)
        for name, size in sizes(model).items():
            found = self.size(name) if name in self else "missing"
            if found != size:
                raise ValueError(f"checkpoint {self.folder}: {name} is {found}; the model's sizes want {size}")
        if surplus(model) in self:
            raise ValueError(f"checkpoint {self.folder} has more blocks than model.num_blocks ({model.num_blocks})")

    def _check_kind(self, model: ModelShape) -> None:
        """What sizes alone may not tell; config.json need not be there."""
        path = self.folder / "config.json"
        stored = json.loads(path.read_text()).get("model_type") if path.exists() else None
        if stored not in (None, wanted := model_type(model.family)):
            raise ValueError(f"checkpoint {self.folder} is a {stored}; model.family {model.family!r} wants a {wanted}")
        if (found := (model.activation, model.biased)) != (experts := experts_of(model.family)):
            (activation, biased), (asked, has) = experts, found
            raise ValueError(
                f"model.activation is {asked} and model.biased {has}; with a checkpoint of {model.family} they must be "
                f"{activation} and {biased}"
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
