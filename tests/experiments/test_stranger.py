"""A system and an experiment from outside the tree: one .py and two .yaml are all that they need."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from analysis.files import read_runs
from analysis.load import load_campaign
from experiments.panels import experiment_points
from scripts.docs_site import cards
from tests.experiments.tiny import run

ROOT = Path(__file__).parents[2]
PLANNER = """\
from systems.planners.placement import Home


class StayAtHome(Home):
    pass
"""
SYSTEM = """\
_target_: systems.planned.PlannedExpertParallel
name: stay_at_home
engine: grouped
planner:
  _target_: strangers.stay.StayAtHome
about:
  label: Nobody moves
  colour: orange
  marker: D
  league: true
  source: a stranger
"""
EXPERIMENT = """\
name: strangers
baseline: ep
twin: null
systems: null
panels:
  experts:
    title: Number of experts
    kind: speedup
    published: []
    systems: [ep, stay_at_home]
    overrides: []
    x: model.num_experts
    values: [4, 8]
"""
SMALL = ["cluster=simulated", "device=h100_sxm", "precision=bf16", "scale=laptop", "batch_size=2", "model.num_blocks=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A package and a folder of configurations, beside one another."""
    place = tmp_path_factory.mktemp("elsewhere")
    files = {"strangers/stay.py": PLANNER, "configs/system/stay_at_home.yaml": SYSTEM}
    for name, text in (files | {"configs/experiment/strangers.yaml": EXPERIMENT}).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


def typed(place: Path) -> list[str]:
    return ["--config-dir", str(place / "configs"), "experiment=strangers", *SMALL]


@pytest.fixture(scope="module")
def campaign(place) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        assert run(*typed(place), f"out={place / 'campaign'}") == 0
        yield place / "campaign"


def test_its_label_stands_in_table_figure_and_report(campaign):
    assert "| 4 | Nobody moves |" in (campaign / "tables/experts.md").read_text()
    assert "Nobody moves" in (campaign / "experts.svg").read_text()
    assert "Nobody moves" in (campaign / "report.html").read_text()


@pytest.mark.slow
def test_what_it_says_of_itself_is_stored_and_no_part_of_its_identity(place, campaign):
    runs = load_campaign(campaign).runs
    mine = {cell for cell, run in runs.items() if run["system"] == "stay_at_home"}
    assert len(mine) == 2 and all(runs[cell]["config"]["system"]["about"]["source"] == "a stranger" for cell in mine)
    yaml = place / "configs/system/stay_at_home.yaml"
    yaml.write_text(SYSTEM.replace("a stranger", "somebody else"))
    assert run(*typed(place), f"out={place / 'again'}") == 0
    yaml.write_text(SYSTEM)
    assert {*json.loads((place / "again/plan.json").read_text())["launches"][0]["cells"]} <= runs.keys()
    assert mine <= read_runs(place / "again").keys()


def test_its_card_stands_among_the_others(place, monkeypatch):
    monkeypatch.setenv("CONFIG_DIR", str(place / "configs"))
    monkeypatch.syspath_prepend(str(place))
    assert "- [Nobody moves](stay_at_home.md): exact, engine grouped" in cards.index()
    text = cards.pages()["stay_at_home"]
    assert text.startswith("# Nobody moves\n") and "| Source | a stranger |" in text and "not said" in text


def test_it_is_in_the_league_by_its_own_word(place):
    others = [f"~experiment.panels.league_{name}" for name in ("permuted", "drift", "trace", "tokens")]
    typed = ["experiment=league", *others, f"hydra.searchpath=[file://{place / 'configs'}]", "network=nvlink3"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        (point,) = experiment_points(compose("config", typed), typed)
    league = {key for key, node in cards.systems().items() if node["about"]["league"]}
    assert {config.system.name for config in point.configs} == league | {"stay_at_home"}
