from typing import Any

import numpy as np
import pytest

from routers.drawn import PROFILE_FROM
from routers.fits import SHIPPED, Fit, read_fits, write_fits
from routers.like import LikeRouter

EIGHT: dict[str, Any] = {"num_experts": 8, "top_k": 2, "moe_blocks": [1, 3], "rank": 0, "seed": 0}


def a_fit(*, sequence_sd: float = 0.0, groups: int = 1, most_groups: int = 1) -> Fit:
    """Two layers of eight experts: falling popularity, and rising."""
    falling_E = np.log(np.array([8, 6, 5, 4, 3, 2, 2, 2]) / 32)
    popularity_LE = np.stack([falling_E, falling_E[::-1]])
    line_LE = np.zeros((2, 8))
    line_LE[:, 0] = np.log(2)
    sd_L = np.full(2, sequence_sd)
    return Fit(popularity_LE, line_LE, np.zeros((2, 8)), sd_L, 2, groups, most_groups, "decode", "made up")


@pytest.fixture
def router(tmp_path):
    def build(fit: Fit, **options: Any) -> LikeRouter:
        write_fits(tmp_path / "fits.npz", {"a": fit})
        given: dict[str, Any] = EIGHT | {"path": str(tmp_path / "fits.npz"), "regime": "decode"} | options
        return LikeRouter(**given)

    return build


def counted(router: LikeRouter, num_tokens: int, *, layer: int = 1, iteration: int = 0) -> np.ndarray:
    expert_TK = router.draw(num_tokens, layer=layer, iteration=iteration)
    assert expert_TK.shape == (num_tokens, 2) and (expert_TK[:, 0] != expert_TK[:, 1]).all()
    return np.bincount(expert_TK.ravel(), minlength=8)


def test_a_fit_is_read_as_it_was_written(tmp_path):
    write_fits(tmp_path / "fits.npz", {"a": a_fit(), "b": a_fit(groups=4, most_groups=2)})
    first, second = read_fits(tmp_path / "fits.npz").values()
    np.testing.assert_array_equal(first.popularity_LE, a_fit().popularity_LE)
    assert (second.groups, second.most_groups, second.top_k, second.regime) == (4, 2, 2, "decode")


def test_a_run_is_as_far_along_the_line_as_it_is_asked_to_be():
    share_E, further_E = a_fit().shares(0, 0), a_fit().shares(0, 2)
    np.testing.assert_allclose(share_E, np.array([8, 6, 5, 4, 3, 2, 2, 2]) / 32)
    np.testing.assert_allclose(further_E, np.array([32, 6, 5, 4, 3, 2, 2, 2]) / 56)


def test_layers_have_their_own_popularity_and_profiles_their_own_run(router):
    like = router(a_fit(), sequences_differ=False, profiled_run=3.0)
    assert (np.diff(counted(like, 20_000)[:5]) < 0).all() and (np.diff(counted(like, 20_000, layer=3)[3:]) > 0).all()
    usual, profiled = counted(like, 20_000)[0], counted(like, 20_000, iteration=PROFILE_FROM)[0]
    assert profiled > 1.3 * usual
    assert like.intended(320, layer=1, iteration=0) is None


def test_a_prompt_is_another_in_every_iteration_and_a_decoded_sequence_stays(router):
    """Of 4 very particular sequences the shares of experts in two iterations are alike only if they are the same."""
    prompts, decoded = (
        router(a_fit(sequence_sd=3.0), sequences=4, of="a", regime=regime) for regime in ("prefill", "decode")
    )
    differ = [np.abs(counted(one, 8000) - counted(one, 8000, iteration=1)).sum() / 16_000 for one in (prompts, decoded)]
    assert differ[0] > 0.2 and differ[1] < 0.05
    assert np.abs(counted(decoded, 8000) - counted(decoded, 8000, iteration=PROFILE_FROM)).sum() / 16_000 > 0.2


def test_sequences_are_made_of_neighbouring_tokens(router):
    expert_TK = router(a_fit(sequence_sd=4.0), sequences=2).draw(4000, layer=1, iteration=0)
    of_sequence = [np.bincount(part_TK.ravel(), minlength=8) for part_TK in np.split(expert_TK, 2)]
    within = [np.bincount(part_TK.ravel(), minlength=8) for part_TK in np.split(expert_TK[:2000], 2)]
    assert np.abs(of_sequence[0] - of_sequence[1]).sum() > 10 * np.abs(within[0] - within[1]).sum()


def test_a_tokens_experts_are_of_no_more_groups_than_the_model_allows(router):
    expert_TK = router(a_fit(groups=4, most_groups=1)).draw(3000, layer=1, iteration=0)
    assert (expert_TK[:, 0] // 2 == expert_TK[:, 1] // 2).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run": 4}, "router.run is 4; it must be a number from -3 to 3"),
        ({"profiled_run": True}, "router.profiled_run is True; it must be a number"),
        ({"sequences_differ": 1}, "router.sequences_differ is 1; it must be true or false"),
        ({"of": "b"}, r"router.of is b; it must be one of a \(num_experts=8, top_k=2, decode\)"),
        ({"of": "a", "top_k": 3}, "router.of is a, and the model has num_experts=8 and top_k=3; the fits are a"),
        (
            {"regime": "prefill"},
            "router.of is null and 0 fits are of num_experts=8 and top_k=2 in prefill; name one of a",
        ),
        ({"layers": [0, 2]}, "router.layers is"),
        ({"path": "README.md"}, "router.path is README.md, which scripts.fit_loads did not write"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(router, options, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        router(a_fit(), **options)


def test_what_comes_with_the_project_is_of_three_models_and_balances_as_its_errors_say():
    fits = read_fits(SHIPPED)
    assert {name.partition(".")[0] for name in fits} == {"deepseek_v3", "qwen1", "switch_base_128"}
    decode = LikeRouter(
        num_experts=256, top_k=8, moe_blocks=range(3, 61), rank=0, seed=0, sequences=512, regime="decode"
    )
    expert_TK = decode.draw(32_768, layer=20, iteration=0)
    drawn_G = np.bincount(expert_TK.ravel(), minlength=256).reshape(32, 8).sum(1)
    share_G = decode.fit.shares(17, 0).reshape(32, 8).sum(1)  # block 20 is the eighteenth with experts
    assert drawn_G.max() / drawn_G.mean() == pytest.approx(share_G.max() / share_G.mean(), rel=0.06)
    assert all(len(set(one)) <= 4 for one in (expert_TK[:200] // 32).tolist())
