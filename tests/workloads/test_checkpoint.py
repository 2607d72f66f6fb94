import json
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workloads.checkpoint import Checkpoint, open_checkpoint
from workloads.layouts import expert_name, router_name
from workloads.model import ModelShape

MODEL = ModelShape(num_experts=4, d_model=8, d_ff=12, d_kv=3, num_heads=2, num_blocks=4, sparse_step=2, vocab_size=20)
QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def random_tensors() -> dict[str, torch.Tensor]:
    """The parameters that a check looks at and those of the MoE layers, with Hugging Face's names spelled out."""
    sizes = {"shared.weight": (20, 8), "encoder.final_layer_norm.weight": (8,)}
    for block in range(4):
        sizes[f"encoder.block.{block}.layer.0.SelfAttention.q.weight"] = (6, 8)
    sizes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 2)
    for block in (0, 2):
        sizes[f"encoder.block.{block}.layer.1.mlp.wi.weight"] = (12, 8)
    for block in (1, 3):
        sizes[f"encoder.block.{block}.layer.1.mlp.router.classifier.weight"] = (4, 8)
        for expert in range(4):
            name = f"encoder.block.{block}.layer.1.mlp.experts.expert_{expert}"
            sizes |= {f"{name}.wi.weight": (12, 8), f"{name}.wo.weight": (8, 12)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def save(folder: Path, tensors: dict[str, torch.Tensor], num_files: int = 1) -> Path:
    """One file, or several with the index that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    if num_files == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    file_of = {name: f"model-{i % num_files}.safetensors" for i, name in enumerate(tensors)}
    for file in set(file_of.values()):
        save_file({name: tensors[name] for name in tensors if file_of[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    return folder


@pytest.fixture(params=[1, 3], ids=["single_file", "sharded"])
def stored(tmp_path, request) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    tensors = random_tensors()
    return open_checkpoint(str(save(tmp_path, tensors, request.param))), tensors


def test_names_are_hugging_faces():
    assert router_name(3) == "encoder.block.3.layer.1.mlp.router.classifier.weight"
    assert expert_name(1, 2, "wo") == "encoder.block.1.layer.1.mlp.experts.expert_2.wo.weight"


def test_reads_whole_tensors_rows_and_columns(stored):
    checkpoint, tensors = stored
    wi = expert_name(1, 2, "wi")
    for name, tensor in tensors.items():
        assert name in checkpoint and checkpoint.size(name) == list(tensor.shape)
        assert torch.equal(checkpoint.read(name), tensor)
    assert torch.equal(checkpoint.read(wi, slice(3, 6)), tensors[wi][3:6])
    assert torch.equal(checkpoint.read(wi, slice(None), slice(2, 5)), tensors[wi][:, 2:5])
    assert torch.equal(checkpoint.read(wi, slice(3, 6), slice(2, 5)), tensors[wi][3:6, 2:5])


def test_unknown_parameter(stored):
    checkpoint, _ = stored
    assert "lm_head.weight" not in checkpoint
    with pytest.raises(KeyError, match=r"lm_head\.weight"):
        checkpoint.read("lm_head.weight")


def test_check_passes_for_its_own_model(stored):
    stored[0].check(MODEL)


@pytest.mark.parametrize(
    ("change", "name", "found", "wanted"),
    [
        ({"vocab_size": 21}, "shared.weight", [20, 8], [21, 8]),
        ({"d_kv": 4}, QUERY, [6, 8], [8, 8]),
        ({"num_heads": 1, "d_kv": 6}, BIAS, [32, 2], [32, 1]),
        ({"sparse_step": 4}, "encoder.block.3.layer.1.mlp.wi.weight", "missing", [12, 8]),
        ({"num_experts": 8}, router_name(1), [4, 8], [8, 8]),
        ({"num_experts": 2}, router_name(1), [4, 8], [2, 8]),
        ({"d_ff": 16}, expert_name(3, 3, "wi"), [12, 8], [16, 8]),
        ({"sparse_step": 1}, router_name(0), "missing", [4, 8]),
        ({"num_blocks": 6}, expert_name(5, 3, "wi"), "missing", [12, 8]),
    ],
)
def test_check_names_the_parameter_and_both_sizes(stored, change, name, found, wanted):
    checkpoint, _ = stored
    with pytest.raises(ValueError) as caught:
        checkpoint.check(replace(MODEL, **change))
    assert str(caught.value) == f"checkpoint {checkpoint.folder}: {name} is {found}; the model's sizes want {wanted}"


def test_check_names_surplus_blocks(stored):
    with pytest.raises(ValueError, match=r"has more blocks than model\.num_blocks \(2\)$"):
        stored[0].check(replace(MODEL, num_blocks=2))


def test_neither_directory_nor_hub_name(monkeypatch):
    asked = {}

    def offline(name: str, **options: object) -> str:
        asked.update(options, name=name)
        raise OSError("no network")

    monkeypatch.setattr("workloads.checkpoint.snapshot_download", offline)
    sentence = r"model\.checkpoint 'nobody/nothing' is no directory and could not be fetched from the hub \(OSError\)$"
    with pytest.raises(ValueError, match=sentence):
        open_checkpoint("nobody/nothing")
    assert asked["name"] == "nobody/nothing"
    pickled = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pkl"]
    assert not [name for name in pickled if any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])]


def test_hub_name_is_opened_where_the_hub_client_puts_it(monkeypatch, tmp_path):
    folder = save(tmp_path / "snapshot", random_tensors())
    monkeypatch.setattr("workloads.checkpoint.snapshot_download", lambda name, **_: str(folder))
    checkpoint = open_checkpoint("google/switch-base-8")
    checkpoint.check(MODEL)
    assert checkpoint.folder == folder


def test_directory_without_safetensors(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(ValueError, match=r"has no model\.safetensors; write it with save_pretrained first$"):
        open_checkpoint(str(tmp_path))
