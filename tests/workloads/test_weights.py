from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from tests.workloads.test_checkpoint import MODEL, random_tensors, save
from workloads.checkpoint import open_checkpoint
from workloads.weights import CheckpointLayer, SeededLayer, SharedLayer

CPU = torch.device("cpu")
EVERY = list(range(MODEL.num_experts))


def seeded(block: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32) -> SeededLayer:
    return SeededLayer(MODEL, block, seed, dtype, CPU)


@pytest.fixture(params=["seeded", "checkpoint", "sharded_checkpoint"])
def layer(request, tmp_path) -> SeededLayer | CheckpointLayer:
    if request.param == "seeded":
        return seeded()
    save(tmp_path, random_tensors(), num_files=1 if request.param == "checkpoint" else 3)
    return CheckpointLayer(MODEL, 1, open_checkpoint(str(tmp_path)), torch.float32, CPU)


def test_sizes(layer):
    wi_eDF, wo_eFD = layer.experts([2, 0])
    assert wi_eDF.shape == (2, 8, 12) and wo_eFD.shape == (2, 12, 8)
    wi_EDf, wo_EfD = layer.shard(1, 2)
    assert wi_EDf.shape == (4, 8, 6) and wo_EfD.shape == (4, 6, 8)
    assert layer.router().shape == (4, 8) and layer.router().dtype == torch.float32


def test_an_expert_does_not_depend_on_which_others_are_asked_for(layer):
    every = layer.experts(EVERY)
    for ids in ([3], [2, 0], [1, 1]):
        for part, whole in zip(layer.experts(ids), every, strict=True):
            assert torch.equal(part, whole[ids])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_are_columns_of_wi_and_rows_of_wo(layer, count):
    wi_EDF, wo_EFD = layer.experts(EVERY)
    shards = [layer.shard(index, count) for index in range(count)]
    assert torch.equal(torch.cat([wi for wi, _ in shards], dim=2), wi_EDF)
    assert torch.equal(torch.cat([wo for _, wo in shards], dim=1), wo_EFD)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_outputs_of_the_shards_add_up_to_those_of_the_experts(layer, count):
    x_RD = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))

    def ffn(wi_EDF: torch.Tensor, wo_EFD: torch.Tensor) -> torch.Tensor:
        return torch.relu(x_RD @ wi_EDF) @ wo_EFD

    shards_ERD = sum(ffn(*layer.shard(index, count)) for index in range(count))
    torch.testing.assert_close(shards_ERD, ffn(*layer.experts(EVERY)), rtol=1e-5, atol=1e-5)


def test_seed_block_and_expert_decide():
    assert torch.equal(seeded().experts([1])[0], seeded().experts([1])[0])
    assert torch.equal(seeded().router(), seeded().router())
    for other in (seeded(block=3), seeded(seed=1)):
        assert not torch.equal(other.experts([1])[0], seeded().experts([1])[0])
        assert not torch.equal(other.router(), seeded().router())
    wi_EDF, wo_EFD = seeded().experts(EVERY)
    assert len(torch.unique(wi_EDF[:, 0, 0])) == len(torch.unique(wo_EFD[:, 0, 0])) == 4


def test_global_generator_neither_decides_nor_moves():
    torch.manual_seed(0)
    first_eDF, state = seeded().experts([0])[0], torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(seeded().experts([0])[0], first_eDF)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_standard_deviations_are_those_of_switch():
    model = replace(MODEL, num_experts=64, d_model=64, d_ff=256)
    large = SeededLayer(model, 1, 0, torch.float32, CPU)
    wi_eDF, wo_eFD = large.experts([0, 1, 2])
    assert float(wi_eDF.std()) == pytest.approx(64**-0.5, rel=0.02)
    assert float(wo_eFD.std()) == pytest.approx(256**-0.5, rel=0.02)
    assert float(large.router().std()) == pytest.approx(64**-0.5, rel=0.05)


def test_half_precision_is_the_rounded_float32():
    for half, full in zip(seeded(dtype=torch.bfloat16).experts([0]), seeded().experts([0]), strict=True):
        assert half.dtype == torch.bfloat16 and torch.equal(half, full.bfloat16())


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 2**40), st.integers(0, 11))
def test_any_selection_is_a_selection_of_the_whole(ids, seed, block):
    layer = seeded(block, seed)
    assert torch.equal(layer.experts(ids)[0], layer.experts(EVERY)[0][ids])


def test_checkpoint_values_are_the_files(tmp_path):
    tensors = random_tensors()
    checkpoint = open_checkpoint(str(save(tmp_path, tensors)))
    layer = CheckpointLayer(MODEL, 3, checkpoint, torch.float32, CPU)
    wi_eDF, wo_eFD = layer.experts([2])
    name = "encoder.block.3.layer.1.mlp"
    assert torch.equal(wi_eDF[0], tensors[f"{name}.experts.expert_2.wi.weight"].T)
    assert torch.equal(wo_eFD[0], tensors[f"{name}.experts.expert_2.wo.weight"].T)
    assert torch.equal(layer.router(), tensors[f"{name}.router.classifier.weight"])
    half = CheckpointLayer(MODEL, 3, checkpoint, torch.bfloat16, CPU)
    assert torch.equal(half.experts([2])[0], wi_eDF.bfloat16())
    assert torch.equal(half.router(), layer.router())


def test_a_shard_reads_nothing_but_its_part(tmp_path, monkeypatch):
    read: dict[str, int] = {}

    class Spy:
        """safe_open that counts elements and has no other way to a tensor than get_slice."""

        def __init__(self, path: Any, framework: str) -> None:
            self._file = safe_open(path, framework=framework)

        def __enter__(self) -> "Spy":
            return self

        def __exit__(self, *_: object) -> None:
            return

        def keys(self) -> list[str]:
            return self._file.keys()

        def get_slice(self, name: str) -> "SpiedSlice":
            return SpiedSlice(name, self._file.get_slice(name))

    class SpiedSlice:
        def __init__(self, name: str, view: Any) -> None:
            self._name, self._view = name, view

        def __getitem__(self, index: Any) -> torch.Tensor:
            part = self._view[index]
            read[self._name] = read.get(self._name, 0) + part.numel()
            return part

    monkeypatch.setattr("workloads.checkpoint.safe_open", Spy)
    layer = CheckpointLayer(MODEL, 1, open_checkpoint(str(save(tmp_path, random_tensors()))), torch.float32, CPU)
    layer.shard(1, 4)
    experts = {
        f"encoder.block.1.layer.1.mlp.experts.expert_{expert}.{matrix}.weight"
        for expert in EVERY
        for matrix in ("wi", "wo")
    }
    assert read == dict.fromkeys(experts, 8 * 12 // 4)
    read.clear()
    layer.experts([3])
    assert read == {name: 8 * 12 for name in experts if "expert_3" in name}


def test_shared_layer_gives_the_same_tensors_to_systems_with_the_same_placement():
    shared = SharedLayer(seeded())
    assert shared.experts([0, 1]) is shared.experts([0, 1])
    assert shared.shard(1, 2) is shared.shard(1, 2)
    assert shared.experts([0, 1]) is not shared.experts([1, 0])
    for given_ones, wanted in (
        (shared.experts([1, 0]), seeded().experts([1, 0])),
        (shared.experts([0, 1]), seeded().experts([0, 1])),
        (shared.shard(0, 2), seeded().shard(0, 2)),
        (shared.shard(1, 2), seeded().shard(1, 2)),
        (shared.shard(1, 4), seeded().shard(1, 4)),
    ):
        assert all(torch.equal(*pair) for pair in zip(given_ones, wanted, strict=True))
