"""The documentation site: every page is reachable, the reference covers the code, links lead somewhere."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.checks.timing import METRICS
from analysis.quality import COLUMNS as QUALITY
from analysis.quality import LAYER_COLUMNS
from analysis.schema import COLLECTIVE_COLUMNS, ROUTING_COLUMNS, SAMPLE_COLUMNS
from analysis.summary import COLUMNS
from experiments.composition import SIMULATED
from scripts.docs_site.check import faults
from scripts.docs_site.configuration import configuration
from scripts.docs_site.keys import group_keys, groups, meanings, options, top_level
from scripts.docs_site.stored import TABLES, derived, stored_document

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONF = ROOT / "conf"
DATA = (
    "device.grouped",
    "model.settings",
    "device.peak_tflops",
    "device.host",
    "network.devices",
    "engines",
    "system.about",
)
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def pages(nav: Any) -> list[str]:
    """The paths in a part of the navigation."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def leaves(value: Any, name: str) -> list[str]:
    """Dotted names of the keys of a configuration file that are no mappings."""
    if not isinstance(value, dict):
        return [name]
    own = {key: part for key, part in value.items() if key not in ("defaults", "hydra", "_target_", "name")}
    return [leaf for key, part in own.items() for leaf in leaves(part, f"{name}.{key}".lstrip("."))]


@pytest.fixture(scope="module")
def reference() -> str:
    return configuration()


def test_navigation_has_every_page_once():
    assert sorted(pages(SITE["nav"])) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_reference_has_every_key(reference: str):
    documented = set(re.findall(r"^\| `([\w.]+)`", reference, re.M))
    assert sorted(groups()) == sorted(path.name for path in CONF.iterdir() if path.is_dir())
    files = {"": [CONF / "config.yaml"]}
    files |= {group: [CONF / group / f"{option.name}.yaml" for option in options(group)] for group in groups()}
    for group, paths in files.items():
        prefix = "" if group == "panel" else group
        keys = {key for path in paths for key in leaves(yaml.safe_load(path.read_text()), prefix)}
        # What is data rather than keys stands in the reference as one value.
        whole = tuple(f"{one}." for one in DATA if one in documented)
        assert [key for key in sorted(keys - documented) if not key.startswith(whole)] == []


def test_reference_leaves_out_only_what_was_measured_here():
    left_out = {path for group in groups() for path in (CONF / group).glob("*.yaml")}
    left_out -= {CONF / group / f"{option.name}.yaml" for group in groups() for option in options(group)}
    assert all(re.fullmatch(r"network/\w+_here|device/here", f"{p.parent.name}/{p.stem}") for p in left_out)


def test_reference_says_what_simulated_ranks_imply():
    implied = " ".join(f"{key}={value}" for key, value in SIMULATED.items())
    assert implied in (DOCS / "reference/configuration.md").read_text()


@pytest.mark.parametrize("group", groups())
def test_reference_has_every_option(reference: str, group: str):
    assert options(group)
    assert all(f"\n| `{option.name}` | " in reference and option.about for option in options(group))


def test_every_key_has_a_type_and_a_meaning():
    keys = {"": top_level(), **{group: group_keys(group) for group in groups()}}
    bare = [f"{group}.{key.name}" for group, own in keys.items() for key in own if not (key.meaning and key.types)]
    assert [name for name in bare if not name.endswith(".name")] == []


def test_no_meaning_is_of_a_key_that_is_gone():
    there = {f"{group}.{key.name}" for group in groups() for key in group_keys(group)} | {
        key.name for key in top_level()
    }
    assert meanings()["keys"].keys() <= there


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("samples", SAMPLE_COLUMNS),
        ("routing", ROUTING_COLUMNS),
        ("collectives", COLLECTIVE_COLUMNS),
        ("summary", COLUMNS),
        ("quality", QUALITY),
        ("quality_layers", LAYER_COLUMNS),
        ("metrics", [*METRICS, *derived()]),
    ],
)
def test_every_stored_column_and_metric_has_a_meaning(name: str, stored: list[str]):
    assert sorted(meanings()[name]) == sorted(stored)


@pytest.mark.parametrize("name", ["plan", "run"])
def test_every_key_of_a_stored_document_has_a_meaning(name: str):
    assert stored_document(name).keys() <= meanings()[name].keys()


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_whole_rows(name: str):
    bars = {line.count(" | ") for line in TABLES[name]().splitlines()}
    assert len(bars) == 1


def test_what_leads_nowhere_is_named(tmp_path: Path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">x</a><a href="b.html#gone">x</a><a href="c.html">x</a>')
    (tmp_path / "b.html").write_text('<p id="there">| a | b |</p><script src="https://host/x.js"></script>')
    named = [fault.partition(" ")[2] for fault in faults(tmp_path)]
    assert [len(named), named[0], named[1]] == [4, "b.html#gone has no such anchor", "c.html does not exist"]
    assert "fetched from another host" in named[2] and "left as text" in named[3]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_site_builds_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert list(faults(tmp_path)) == []
