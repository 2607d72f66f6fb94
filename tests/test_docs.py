"""What the documentation shows is true."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from clusters.session import ClusterSpec
from experiments.conformance import TOLERANCE, judge
from experiments.panels import experiment_points

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "LOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


EXAMPLES = {
    "add_a_system": ("gathered", {"_target_": "gathered.GatheredTokens", "engine": "grouped"}),
    "add_a_planner": (
        "copy_busiest",
        {
            "_target_": "systems.planned.PlannedExpertParallel",
            "engine": "loop",
            "loads": "oracle",
            "migration": "broadcast",
            "planner": {"_target_": "copy_busiest.CopyBusiest", "experts": 2},
        },
    ),
    "tutorial/first_system": (
        "snake",
        {
            "_target_": "systems.planned.PlannedExpertParallel",
            "engine": "loop",
            "loads": "profiled",
            "planner": {"_target_": "snake.Snake"},
        },
    ),
}


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_example_equals_dense(tmp_path, monkeypatch, page):
    name, node = EXAMPLES[page]
    source = re.search(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)
    assert source is not None and len(source.group(1).splitlines()) < 80
    (tmp_path / f"{name}.py").write_text(source.group(1))
    monkeypatch.syspath_prepend(str(tmp_path))
    ranks = judge({name: {"name": name, **node}}, ClusterSpec("gloo", 2, timeout_s=60), tmp_path / "judged")
    verdicts = [verdict for found in ranks for verdict in found.values()]
    assert len(verdicts) == 36 and all(verdict["error"] <= TOLERANCE for verdict in verdicts)


def test_the_experiment_of_the_tutorial_has_its_points(tmp_path):
    written = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/tutorial/first_experiment.md").read_text(), re.DOTALL)
    assert written is not None
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/long_tail.yaml").write_text(written.group(1))
    typed = ["experiment=long_tail", f"hydra.searchpath=[file://{tmp_path}]", "network=nvlink3"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        points = experiment_points(compose("config", typed), typed)
    assert [(point.panel, point.x) for point in points] == [("exponent", x) for x in (0.0, 0.5, 1.0, 1.5)]
    assert [config.system.name for config in points[0].configs] == ["ep", "ep_round_robin", "moeshard"]
    assert [point.configs[0].router["exponent"] for point in points] == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(page):
    text = page.read_text()
    assert not re.search(r"^@[A-Z]+@", text, re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
