"""What the documentation shows is true."""

import re
from pathlib import Path

import pytest

from clusters.launch import prepare
from clusters.session import ClusterSpec
from experiments.conformance import TOLERANCE, judge

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
            "mover": "broadcast",
            "planner": {"_target_": "copy_busiest.CopyBusiest", "experts": 2},
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
    prepare(ClusterSpec(), ["experiments.conformance", "deepspeed.moe.layer"])
    ranks = judge({name: {"name": name, **node}}, ClusterSpec("gloo", 2, timeout_s=60), tmp_path / "judged")
    verdicts = [verdict for found in ranks for verdict in found.values()]
    assert len(verdicts) == 30 and all(verdict["error"] <= TOLERANCE for verdict in verdicts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(page):
    text = page.read_text()
    assert not re.search(r"^@[A-Z]+@", text, re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
