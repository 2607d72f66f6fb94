"""What a planner is shown, what its plans are worth, and the command around both."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices import load_device
from experiments.referee import Referee, Violation
from experiments.score import COLUMNS, main
from experiments.score_loads import BATCHES, Source, read_model, sources
from experiments.scoring import Scorer, Setting, View, overall, play
from routers.drawn import PROFILE_FROM, DrawnRouter
from routers.fits import SHIPPED
from routers.token_trace import DEFAULT_PATH as TOKENS
from systems.planners.base import as_replicas
from systems.planners.eplb import EPLB
from systems.planners.placement import Home

DEVICE = load_device("h200_sxm")
CSV = "num_experts,layer,iteration,tokens_per_expert\n" + "".join(
    f"8,{layer},{iteration},{' '.join(str(1 + 9 * (expert == iteration % 8)) for expert in range(8))}\n"
    for layer in (1, 3)
    for iteration in range(8)
)


class Numbered(DrawnRouter):
    """All copies of a rank in a batch go to one expert: batch + rank, of a profile four more."""

    def draw(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray:
        number = 4 + iteration - PROFILE_FROM if iteration >= PROFILE_FROM else iteration
        return np.full((num_tokens, 1), (number + self.rank) % 8)

    def intended(self, num_tokens: int, *, layer: int, iteration: int) -> None:
        raise AssertionError("nobody asks")


class Witness(Home):
    """Keeps the loads that it is shown; every second expert changes its place."""

    def __init__(self) -> None:
        self.shown: list[list[float]] = []

    def place(self, loads_GE, current_EG, costs):
        self.shown.append((loads_GE.sum(0) / 3000).tolist())
        return current_EG


class Everywhere(EPLB):
    def place(self, loads_GE, current_EG, costs):
        return np.ones_like(current_EG)


@pytest.fixture
def source() -> Source:
    """Two layers of eight experts, encoded: 3,000 copies a rank."""
    router = Numbered(num_experts=8, rank=0, seed=0)
    return Source("numbered.here", read_model("switch", num_experts=8), "encode", router, 2)


@pytest.fixture
def record(tmp_path: Path) -> str:
    path = tmp_path / "mine.csv"
    path.write_text(CSV)
    return f"loads={path}"


def shown(view: View, source: Source) -> list[set[int]]:
    """The experts that have tokens in what the planner is shown, one layer, each question once."""
    witness = Witness()
    played = list(play(Referee(witness), view, Setting(source, 2, DEVICE)))
    assert len(played) == source.num_layers * BATCHES
    loads = witness.shown if view.loads == "profiled" else witness.shown[: len(witness.shown) // 2 : 2]
    return [set(np.flatnonzero(load_E).tolist()) for load_E in loads]


def test_a_planner_sees_what_it_may_see(source: Source):
    """Batch i is of the experts i and i + 1, the profile of 4 and 5."""
    assert shown(View("oracle", "point_to_point"), source) == [{0, 1}, {1, 2}]
    assert shown(View("lagged", "point_to_point"), source) == [{0, 1}, {1, 2}]  # before batches 1 and 2
    assert shown(View("lagged", "swap", window=2), source) == [{0, 1, 2}, {1, 2, 3}, {2, 3, 4}]
    assert shown(View("profiled"), source) == 2 * [{4, 5}]
    assert shown(View("none"), source) == []


def test_ep_by_hand(source: Source):
    """Batch 0 on two ranks: expert 0 gets the tokens of rank 0, where it is, and expert 1 those of rank 1."""
    first, second, *_ = play(Referee(Home()), View(), Setting(source, 2, DEVICE))
    assert first["max_over_mean"] == 2 and first["over_least"] == 1 and first["activated"] == 2 and first["held"] == 1
    assert first["remote_rows"] == 3000 and first["remote_share"] == 0.5 and first["experts_moved"] == 0
    experts_s = sum(DEVICE.grouped_s("triton", [3000, 3000], n, k, "bf16") for n, k in ((3072, 768), (768, 3072)))
    one_way_s = DEVICE.network(2).seconds("all_to_all", (3000 * 768 * 2,), 2)
    assert first["layer_ms"] == pytest.approx(1e3 * (experts_s + 2 * one_way_s), rel=1e-9)
    assert second["remote_rows"] == 3000


def test_weights_are_billed_to_whoever_sends_most(source: Source):
    """Experts 0 and 1 go from rank 0 to rank 1; from a host each rank fetches by itself."""
    setting, before_EG = Setting(source, 2, DEVICE), as_replicas(np.arange(8) // 4, 2)
    after_EG = before_EG.copy()
    after_EG[:2, 1] = 1
    expert_bytes = 2 * 768 * 3072 * 2
    link_s = DEVICE.network(2).seconds("all_to_all", (2 * expert_bytes,), 2)
    assert setting.weights_s(before_EG, after_EG, "point_to_point") == pytest.approx(link_s)
    spread_s = DEVICE.network(2).seconds("broadcast", (2 * expert_bytes,), 2)
    assert setting.weights_s(before_EG, after_EG, "broadcast") == pytest.approx(spread_s)
    assert setting.weights_s(before_EG, after_EG, "swap_in") == pytest.approx(DEVICE.transfer_s(2 * expert_bytes))
    assert setting.weights_s(before_EG, before_EG, "swap") == 0


def test_the_score_is_against_ep_and_repeats(source: Source):
    scorer = Scorer(DEVICE)
    assert scorer.score(Home(), View(), source, 2)["over_ep"] == 1
    first, second = (scorer.score(EPLB(8), View("oracle", "point_to_point"), source, 4) for _ in range(2))
    timed = ("plan_ms_min", "plan_ms_median")
    assert all(first[key] == second[key] for key in first if key not in timed)
    assert first["max_over_mean"] < 1.1 < first["held"] and first["experts_moved"] > 0


def test_every_model_and_phase_counts_the_same():
    scored = [{"group": "a", "over_ep": 8.0}, {"group": "b", "over_ep": 1.0}, {"group": "b", "over_ep": 4.0}]
    assert overall(scored) == pytest.approx(4.0)


def test_room_may_be_limited(source: Source):
    """All eight experts are on each of four ranks, which own two."""
    setting = Setting(source, 4, DEVICE)
    list(play(Referee(Everywhere()), View("profiled"), setting, extra_slots=6))
    with pytest.raises(Violation, match=r"planner Everywhere places 8 experts on rank 0 of 7 slots"):
        list(play(Referee(Everywhere()), View("profiled"), setting, extra_slots=5))


def test_few_ranks_have_the_loads_of_the_first_of_many():
    source = sources(None, None, None, seed=1)[1]
    assert source.name == "deepseek_v3.decode" and source.group == "deepseek_v3, decode"
    few_GE, many_GE = source.tokens(0, 0, 2), source.tokens(0, 0, 3)
    assert few_GE.tolist() == many_GE[:2].tolist() and few_GE.sum(1).tolist() == [64 * 8] * 2
    assert not (source.profile(2)[0, 0] == source.router.draw(64, layer=0, iteration=0).ravel()).all()


def test_the_command_writes_everything(record: str, tmp_path: Path, capsys: Any):
    out = tmp_path / "out.json"
    typed = ["eplb_profiled", record, "model=switch", "ranks=2,4", "planner.extra_replicas=4"]
    assert main([*typed, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "mine.E8" in text and "extra_replicas 4" in text
    written = json.loads(out.read_text())
    assert [one["ranks"] for one in written["scored"]["loads"]] == [2, 4] and written["device"] == "h200_sxm"
    assert f"score: {written['scored']['score']:.4f}" in text
    assert len(written["scored"]["loads"][0]["batches"]) == 2 * BATCHES


def test_a_class_is_placed_by_a_profile_and_all_is_a_table(record: str, capsys: Any):
    assert main(["systems.planners.eplb.EPLB", record, "model=switch", "ranks=4"]) == 0
    assert "placed_by profiled, migration static" in capsys.readouterr().out
    assert main(["all", record, "model=switch", "ranks=4", "extra_slots=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line for line in lines}
    assert found["eplb_profiled"].endswith("of 4 slots") and found["ep_planned"].split()[1:3] == ["none", "1"]


@pytest.mark.parametrize(
    ("typed", "status", "sentence"),
    [
        (["nobody"], 2, "there is no system 'nobody'; it is one of"),
        (["systems.planners.eplb.EPLX"], 2, "has no attribute 'EPLX'"),
        (["numpy.array"], 2, "numpy.array has no planner"),
        (["moeshard"], 2, "moeshard has no planner; it must be a planner's class, or a system with a planner"),
        (["eplb_profiled", "planner.extra=3"], 2, "EPLB has no option 'extra'; its options are extra_replicas"),
        (["eplb_profiled", "load=x"], 2, "'load=x' is no option; did you mean 'loads'?"),
        (["eplb_profiled", "device=h300"], 2, "there is no device h300, only a100_sxm"),
        (["eplb_profiled", "device=none"], 2, "there is no device none, only a100_sxm"),
        (["eplb_profiled", "loads=/nowhere.csv"], 2, "loads is /nowhere.csv; there is no such file"),
        (["eplb_profiled", "model=bert", "RECORD"], 2, "model is 'bert'; it must be one of"),
        (["eplb_profiled", "RECORD"], 2, "which does not say how wide its model is; add model="),
        (["eplb_profiled", "RECORD", "model=switch", "ranks=3"], 2, "ranks is [3]; none of them divides the experts"),
        (["eplb_profiled", "RECORD", "model=switch", "ranks=many"], 2, "ranks is 'many'; it must be whole numbers"),
        (["eplb_profiled", "RECORD", "model=switch", "placed_by=x", "ranks=4"], 2, "system.loads is 'x'"),
        (["eplb_profiled", "seed=-1"], 2, "seed is -1; it must be a whole number of at least 0"),
        (["prophet_lagged", "RECORD", "model=switch", "planner.excluded=4", "ranks=4"], 2, "on 4 ranks it must be"),
        (["eplb_profiled", "RECORD", "model=switch", "extra_slots=0", "ranks=4"], 1, "planner EPLB places"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(typed: list[str], status: int, sentence: str, record: str, capsys: Any):
    assert main([record if one == "RECORD" else one for one in typed]) == status
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("error: ") and said.err.count("\n") == 1 and sentence in said.err


def test_the_page_explains_every_column():
    page = (Path(__file__).parents[2] / "docs/score.md").read_text()
    assert [title for title in COLUMNS.values() if f"`{title}`" not in page] == ["load", "ranks"]


def test_every_kind_of_file_is_read(tmp_path: Path):
    (tokens,) = sources(TOKENS, "small_switch", None, seed=0)
    assert (tokens.name, tokens.phase, tokens.num_layers) == ("token_trace.E128", "encode", 2)
    assert tokens.tokens(0, 0, 2).sum(1).tolist() == [3000, 3000]
    (tmp_path / "mine.npz").write_bytes(SHIPPED.read_bytes())
    fits = sources(tmp_path / "mine.npz", "mixtral", None, seed=0)
    assert {(one.phase, one.model.d_model) for one in fits} == {
        (phase, 4096) for phase in ("prefill", "decode", "encode")
    }
    with pytest.raises(ValueError, match=r"regime is 'decode'; model\.family 'switch' can encode"):
        sources(TOKENS, "small_switch", "decode", seed=0)
