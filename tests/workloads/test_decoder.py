"""Decoders with our MoE layers against Hugging Face's own, for every family at laptop size."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from transformers import AutoModelForCausalLM

from clusters.clocks import HostClock
from experiments.configuration import layer_shape_of
from experiments.moe_layer import MoELayer
from experiments.recorder import Recorder
from routers.learned import LearnedRouter
from systems.dense import Dense
from systems.engines import find_engine
from workloads.checkpoint import open_checkpoint
from workloads.decoder import build_decoder, check_decoder
from workloads.families import FAMILIES, hugging_face_config
from workloads.model import DECODERS, ModelShape
from workloads.regimes import Decode, Prefill
from workloads.weights import CheckpointLayer

CONF = Path(__file__).parents[2] / "conf/model"
MODELS: Any = {name: OmegaConf.to_container(OmegaConf.load(CONF / f"{name}_laptop.yaml")) for name in FAMILIES}
REAL: Any = {name: OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")) for name in FAMILIES}
BILLIONS = {  # parameters as published, embeddings included
    "mixtral": 46.7,
    "olmoe": 6.9,
    "qwen2_moe": 14.3,
    "qwen3_moe": 30.5,
    "deepseek_v3": 671.0,
    "glm4_moe": 106.9,
    "gpt_oss": 116.8,
    "minimax_m2": 228.7,
}
B, L = 2, 40  # more than gpt-oss's window
CPU = torch.device("cpu")


class Theirs:
    """The experts of one of Hugging Face's modules, in our layout."""

    def __init__(self, experts: Any) -> None:
        wi, wo = experts.gate_up_proj.data, experts.down_proj.data
        if getattr(experts, "is_transposed", False):  # gpt-oss: gate and up alternate
            biases = (experts.gate_up_proj_bias.data, experts.down_proj_bias.data)
            self._every = (_halves(wi), wo, _halves(biases[0]), biases[1])
        else:
            self._every = (wi.mT, wo.mT)

    def experts(self, expert_ids: list[int]) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[expert_ids].contiguous() for tensor in self._every)


def _halves(wi: torch.Tensor) -> torch.Tensor:
    return torch.cat([wi[..., ::2], wi[..., 1::2]], -1)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request) -> tuple[Any, Any]:
    """Hugging Face's decoder, eager all through, and ours with its weights."""
    model = ModelShape(**MODELS[request.param])
    torch.manual_seed(0)
    config = hugging_face_config(model)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    for parameter in theirs.parameters():  # theirs are so small that a router hardly chooses
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    theirs = theirs.eval().requires_grad_(False)
    router, recorder = LearnedRouter(classifier=lambda block: torch.zeros(())), Recorder(HostClock(), lambda: None)
    group: Any = SimpleNamespace(rank=lambda: 0, size=lambda: 1)

    def moe_layer(block: int) -> MoELayer:
        layer = MoELayer(block, router, recorder)
        shape, weights = layer_shape_of(model, B * L), Theirs(theirs.model.layers[block].mlp.experts)
        engine = find_engine("loop", model.activation)
        layer.system = Dense(shape=shape, weights=weights, group=group, engine=engine)
        return layer

    ours = build_decoder(model, moe_layer, seed=1, dtype=torch.float32, device=CPU)
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing and all(".experts." in name for name in unexpected)
    return theirs, ours


@torch.inference_mode()
def test_a_forward_pass_is_hugging_faces(pair):
    theirs, ours = pair
    tokens_BL = torch.randint(8000, (B, L), generator=torch.Generator().manual_seed(1))
    expected, found = theirs(input_ids=tokens_BL).logits, ours(input_ids=tokens_BL).logits
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    routings = [block.mlp.experts.routing for block in ours.model.layers if hasattr(block.mlp, "experts")]
    assert (
        len({expert for one in routings for expert in one.expert_TK.flatten().tolist()})
        > ours.config.num_experts_per_tok
    )


@torch.inference_mode()
def test_prefill_and_decode_are_the_last_tokens_of_one_pass(pair):
    theirs, ours = pair
    embedded_BLD = torch.randn(B, L, ours.config.hidden_size, generator=torch.Generator().manual_seed(2))
    expected_BLD = theirs.model(inputs_embeds=embedded_BLD, use_cache=False).last_hidden_state
    scale = float(expected_BLD.abs().max())
    prefill = Prefill()
    found_BLD = prefill.run(ours, embedded_BLD, prefill.prepare(ours, embedded_BLD))
    assert float((found_BLD - expected_BLD).abs().max()) < 1e-5 * scale
    decode = Decode()
    state = decode.prepare(ours, embedded_BLD)
    for _ in range(2):  # the cache is put back
        found_B1D = decode.run(ours, embedded_BLD, state)
        assert found_B1D.shape == (B, 1, ours.config.hidden_size)
        assert float((found_B1D - expected_BLD[:, -1:]).abs().max()) < 1e-5 * scale


@torch.inference_mode()
def test_a_cache_of_sizes_alone_is_as_long_as_a_real_one(pair):
    """Attention reads as much on a described device, and its masks fit, within a window and beyond."""
    _, ours = pair
    real = Decode().prepare(ours, embedded_BLD := torch.randn(B, L, ours.config.hidden_size))
    for block in ours.model.layers:
        block.mlp = nn.Identity()
    sizes = Decode().prepare(ours.to("meta"), embedded_BLD.to("meta"))
    for ours_layer, real_layer in zip(sizes.layers, real.layers, strict=True):
        assert ours_layer.keys.shape == real_layer.keys.shape and ours_layer.values.shape == real_layer.values.shape
        assert ours_layer.get_mask_sizes(1) == real_layer.get_mask_sizes(1)
    assert Decode().run(ours, embedded_BLD.to("meta"), sizes).shape == (B, 1, ours.config.hidden_size)


@pytest.mark.parametrize("family", FAMILIES)
def test_real_sizes_have_the_parameters_that_were_published(family):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hugging_face_config(ModelShape(**REAL[family])))
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert parameters == pytest.approx(BILLIONS[family], rel=0.005)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_laptop_model_has_the_experts_of_the_real_one(family):
    real, small = ModelShape(**REAL[family]), ModelShape(**MODELS[family])
    for name in ("family", "num_experts", "top_k", "activation", "biased", "sparse_step"):
        assert getattr(real, name) == getattr(small, name)
    assert small.d_ff / small.d_model == pytest.approx(real.d_ff / real.d_model, rel=0.02)
    assert bool(real.dense_blocks) == bool(small.dense_blocks) and small.d_ff % 4 == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_hugging_faces_is_read_by_slices(family, tmp_path):
    """Written with their names for files, read into our layers, two halves of every expert summed."""
    model = ModelShape(**MODELS[family])
    torch.manual_seed(3)
    theirs: Any = AutoModelForCausalLM.from_config(hugging_face_config(model), attn_implementation="eager").eval()
    theirs.set_experts_implementation("eager")
    for name, buffer in theirs.named_buffers():
        if name.endswith("correction_bias"):  # which starts at zero
            buffer.normal_(std=0.01)
    theirs.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    checkpoint.check(model)
    with pytest.raises(ValueError, match="the model's sizes want"):
        checkpoint.check(ModelShape(**MODELS[family] | {"d_ff": 4 * model.d_ff}))
    router, recorder = LearnedRouter(classifier=lambda block: torch.zeros(())), Recorder(HostClock(), lambda: None)
    group: Any = SimpleNamespace(rank=lambda: 0, size=lambda: 1)

    class Halves:
        def __init__(self, block: int) -> None:
            shape, layer = layer_shape_of(model, B * L), CheckpointLayer(model, block, checkpoint, torch.float32, CPU)
            everything = list(range(model.num_experts))
            given = {"shape": shape, "group": group, "engine": find_engine("loop", model.activation)}
            self.halves = [
                Dense(**given, weights=SimpleNamespace(experts=lambda ids, half=half: layer.shard(half, 2)))
                for half in (0, 1)
            ]
            assert len(layer.experts(everything[:1])[0]) == 1

        def forward(self, x_TD, routing):
            return sum(half.forward(x_TD, routing) for half in self.halves)

    def moe_layer(block: int) -> MoELayer:
        layer = MoELayer(block, router, recorder)
        layer.system = Halves(block)  # pyright: ignore[reportAttributeAccessIssue]
        return layer

    ours = build_decoder(model, moe_layer, seed=1, dtype=torch.float32, device=CPU, checkpoint=checkpoint)
    tokens_BL = torch.randint(8000, (B, L), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = theirs(input_ids=tokens_BL).logits, ours(input_ids=tokens_BL).logits
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_every_decoder_that_may_be_asked_for_is_known():
    assert tuple(FAMILIES) == DECODERS


def changed(family: str, **changes: Any) -> ModelShape:
    """A small model with other sizes, or with other settings where no size is called so."""
    sizes = {name: value for name, value in changes.items() if name in ModelShape.__dataclass_fields__}
    settings = MODELS[family]["settings"] | {name: value for name, value in changes.items() if name not in sizes}
    return ModelShape(**MODELS[family] | {"num_blocks": 2} | sizes | {"settings": settings})


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("deepseek_v3", {"num_experts": 20}, r"num_experts is 20; deepseek_v3 must have equal groups .*n_group is 8"),
        ("deepseek_v3", {"num_experts": 8}, r"num_experts is 8; deepseek_v3 must have equal groups of two or more"),
        ("glm4_moe", {"n_group": 3}, r"num_experts is 128; glm4_moe must have equal groups .*n_group is 3"),
        ("glm4_moe", {"n_group": 0}, r"num_experts is 128; glm4_moe must have equal groups .*n_group is 0"),
        ("deepseek_v3", {"topk_group": 9}, r"topk_group is 9; it must be from 1 to model\.settings\.n_group \(8\)"),
        ("deepseek_v3", {"num_experts": 16, "top_k": 9}, r"top_k is 9; it must be at most 8, the experts of .* \(4\)"),
        ("mixtral", {"num_key_value_heads": 3}, r"num_key_value_heads is 3; of mixtral it must divide .* \(4\)"),
        ("mixtral", {"num_key_value_heads": 0}, r"num_key_value_heads is 0; of mixtral it must divide .* \(4\)"),
        ("deepseek_v3", {"num_key_value_heads": 2}, r"num_key_value_heads is 2; of deepseek_v3 it must equal .* \(4\)"),
        ("olmoe", {"d_kv": 32}, r"d_kv is 32; of olmoe model\.num_heads \(4\) heads of it must make up .* \(64\)"),
        ("qwen2_moe", {"d_model": 60}, r"d_kv is 16; of qwen2_moe .* must make up model\.d_model \(60\)"),
        ("deepseek_v3", {"d_kv": 32}, r"d_kv is 32; it must be model\.settings\.v_head_dim \(16\)"),
        ("qwen3_moe", {"d_kv": 15}, r"no qwen3_moe with these sizes and model\.settings: RoPE requires an even rotary"),
        ("olmoe", {"dense_blocks": 1}, r"olmoe has model\.sparse_step 1 and model\.dense_blocks 1; it must have"),
        ("gpt_oss", {"sliding_window": 0}, r"sliding_window is 0; it must be at least 1"),
        ("gpt_oss", {"sliding_window": None}, r"of this gpt_oss do not fit together"),
        ("mixtral", {"hidden_size": 64}, r"hidden_size is 64; it must be left out, because model\.d_model is it"),
        ("mixtral", {"n_groups": 2}, r"there is no model\.settings\.n_groups: a mixtral of transformers has no such"),
        ("mixtral", {"num_key_value_heads": "two"}, r"no mixtral with these sizes .* expected int, got str"),
        ("qwen2_moe", {"mlp_only_layers": [0]}, r"settings put MoE layers into blocks \[1\]; the sizes want them in"),
        (
            "minimax_m2",
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 2.0}},
            r"of this minimax_m2 do",
        ),
    ],
)
def test_sizes_that_a_family_cannot_have_are_known_before_anything_runs(family, changes, said):
    check_decoder(changed(family), None)
    with pytest.raises(ValueError, match=said) as caught:
        check_decoder(changed(family, **changes), None)
    assert "\n" not in str(caught.value)


def test_no_moe_layer_and_settings_of_no_decoder_are_said():
    with pytest.raises(ValueError, match=r"num_blocks \(2\) with .* model\.dense_blocks \(3\) has no MoE layer"):
        changed("deepseek_v3", dense_blocks=3).check()
    with pytest.raises(ValueError, match=r"model\.settings has n_group; model\.family 'switch' has no settings"):
        ModelShape(4, 8, 8, 4, 2, 2, 2, 32, settings={"n_group": 2}).check()


def test_a_checkpoint_of_another_family_or_other_attention_is_known_before_anything_runs(tmp_path):
    model = changed("olmoe")
    decoder: Any = AutoModelForCausalLM.from_config(hugging_face_config(model))
    decoder.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    checkpoint.check(model)
    check_decoder(model, checkpoint)
    with pytest.raises(ValueError, match=r"is a olmoe; model\.family 'mixtral' wants a mixtral"):
        checkpoint.check(changed("mixtral"))
    with pytest.raises(ValueError, match=r"activation is relu and model\.biased False; .* must be swiglu and False"):
        checkpoint.check(changed("olmoe", activation="relu"))
    with pytest.raises(ValueError, match=r"k_proj.weight is \[64, 64\]; olmoe wants \[32, 64\]"):
        check_decoder(changed("olmoe", num_key_value_heads=2), checkpoint)


def test_what_is_not_of_the_family_is_said():
    model = ModelShape(**MODELS["deepseek_v3"] | {"dense_blocks": 0})
    with pytest.raises(ValueError, match=r"model\.top_k is 300; it must be at most model\.num_experts \(256\)"):
        ModelShape(**MODELS["deepseek_v3"] | {"top_k": 300}).check()
    assert ModelShape(**MODELS["olmoe"]).regime(None) == "prefill"
    with pytest.raises(ValueError, match=r"regime is 'encode'; model\.family 'olmoe' can prefill or decode"):
        ModelShape(**MODELS["olmoe"]).regime("encode")
    assert model.moe_blocks == [0, 1, 2, 3]
