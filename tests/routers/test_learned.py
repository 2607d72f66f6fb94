import pytest
import torch
from transformers import SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from routers.learned import LearnedRouter

NUM_EXPERTS, D_MODEL = 8, 16


def reference(weight_ED: torch.Tensor, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hugging Face's one-hot experts [T, E], probability of the chosen [T, 1] and logits, without drops."""
    config = SwitchTransformersConfig(d_model=D_MODEL, num_experts=NUM_EXPERTS, expert_capacity=10**6)
    router = SwitchTransformersTop1Router(config).eval()
    with torch.no_grad():
        router.classifier.weight.copy_(weight_ED)
        chosen_BTE, weight_BTK, logits_BTE = router(x_TD.unsqueeze(0))
    return chosen_BTE[0], weight_BTK[0], logits_BTE[0]


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight_ED = torch.randn(NUM_EXPERTS, D_MODEL, generator=generator)
    return weight_ED, torch.randn(300, D_MODEL, generator=generator).to(dtype)


def test_equals_hugging_face_without_capacity():
    weight_ED, x_TD = inputs()
    routing = LearnedRouter(classifier=lambda layer: weight_ED).route(x_TD, layer=1, iteration=0)
    chosen_TE, weight_TK, logits_TE = reference(weight_ED, x_TD)
    assert torch.equal(routing.expert_TK[:, 0], chosen_TE.argmax(1))
    assert routing.tokens_per_expert(NUM_EXPERTS).min() > 0
    torch.testing.assert_close(routing.weight_TK, weight_TK, rtol=1e-6, atol=0)
    torch.testing.assert_close(routing.logits_TE, logits_TE, rtol=1e-6, atol=1e-6)


def test_half_precision_tokens_are_routed_in_float32():
    weight_ED, x_TD = inputs(torch.bfloat16)
    routing = LearnedRouter(classifier=lambda layer: weight_ED).route(x_TD, layer=1, iteration=0)
    _, weight_TK, logits_TE = reference(weight_ED, x_TD)
    assert routing.weight_TK.dtype == torch.bfloat16 and torch.equal(routing.weight_TK, weight_TK)
    assert torch.equal(routing.expert_TK[:, 0], logits_TE.argmax(1))


def test_each_layer_has_its_own_classifier_read_once():
    asked = []

    def classifier(layer: int) -> torch.Tensor:
        asked.append(layer)
        return torch.eye(D_MODEL)[layer : layer + 2]  # expert 0 sees coordinate `layer`, expert 1 the next

    router = LearnedRouter(classifier=classifier, num_experts=2, rank=0, seed=0)
    x_TD = torch.eye(D_MODEL)[[1, 2, 4]] * 5
    router.prefetch(3, layer=1, iteration=0, like=x_TD)
    assert router.route(x_TD[:2], layer=1, iteration=0).expert_TK.tolist() == [[0], [1]]
    assert router.route(x_TD[2:], layer=3, iteration=0).expert_TK.tolist() == [[1]]
    assert router.route(x_TD[:2], layer=1, iteration=1).expert_TK.tolist() == [[0], [1]]
    assert asked == [1, 3]


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_few_tokens(num_tokens):
    weight_ED, x_TD = inputs()
    routing = LearnedRouter(classifier=lambda layer: weight_ED).route(x_TD[:num_tokens], layer=1, iteration=0)
    assert routing.expert_TK.shape == routing.weight_TK.shape == (num_tokens, 1)


def test_no_load_is_intended():
    weight_ED, _ = inputs()
    router = LearnedRouter(classifier=lambda layer: weight_ED, moe_blocks=[1, 3])
    assert router.intended(300, layer=1, iteration=0) is None
