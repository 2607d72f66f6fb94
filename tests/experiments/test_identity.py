"""What a cell's numbers rest on: the import closure of what its ranks run, and nothing that cannot change a number."""

import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import identity
from experiments.identity import closure, code_digest
from tests.experiments.tiny import changed, configuration

DENSE = {"_target_": "systems.dense.Dense"}
TINY = configuration()


def digest_with(system: dict[str, Any], kind: str = "emulated") -> str:
    return code_digest(changed(TINY, {"system": system, "cluster.kind": kind}))


@pytest.fixture
def package(tmp_path: Path, monkeypatch):
    """Writes modules of an author's package and returns the identity of `mine.system.Mine` with them."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str = "mine", **modules: str) -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        for module, text in ({"system": SYSTEM} | modules).items():
            (tmp_path / name / f"{module}.py").write_text(text)
        for cached in vars(identity).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()
        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        return digest_with({"_target_": f"{name}.system.Mine"})

    return write


SYSTEM = '''"""A system."""
from systems.dense import Dense


class Mine(Dense):
    """Does it."""

    def helped(self):
        from mine.helper import SLOTS  # only when it is needed

        return SLOTS
'''


def test_a_module_that_is_imported_late_counts(package):
    assert package(helper="SLOTS = 1") != package(helper="SLOTS = 2")


def test_modules_of_the_same_package_that_are_not_imported_do_not_count(package):
    assert package(helper="SLOTS = 1", other="A = 1") == package(helper="SLOTS = 1", other="A = 2")


def test_comments_docstrings_and_layout_do_not_count(package):
    before = package(helper="SLOTS = 1")
    other = SYSTEM.replace('"""Does it."""', '"""Does it well."""').replace("  # only when it is needed", "\n")
    assert package(helper="# As many as needed.\nSLOTS = 1", system=other) == before
    assert package(helper="SLOTS = 1", system=SYSTEM.replace("helped", "aided")) != before


def test_relative_imports_and_packages_on_the_way_count(package):
    relative = SYSTEM.replace("from mine.helper import", "from .helper import")
    assert package(system=relative, helper="SLOTS = 1") != package(system=relative, helper="SLOTS = 2")
    assert package(helper="", __init__="A = 1") != package(helper="", __init__="A = 2")


def test_nested_classes_count():
    nested = {**DENSE, "planner": {"_target_": "systems.planners.eplb.EPLB"}}
    assert digest_with(nested) != digest_with(DENSE)


def test_a_system_does_not_rest_on_another_one_nor_on_reports():
    modules = closure(frozenset({"experiments.worker", "systems.moeshard"}))
    assert {"systems.moeshard", "experiments.bench", "clusters.session", "systems.engines.cpu"} <= modules.keys()
    assert "systems.deepspeed_moe" not in modules
    assert not any(name.startswith(("analysis", "torch", "scripts", "tests")) for name in modules)


def test_what_is_measured_does_not_rest_on_the_simulation():
    modules = closure(frozenset({"experiments.worker", "systems.moeshard"}))
    assert not any(name.startswith(("clusters.simulated", "devices", "experiments.simulate")) for name in modules)
    assert "clusters.simulated.timeline" in closure(frozenset({"experiments.simulate"}))


def test_native_sources_beside_a_module_count(package, tmp_path):
    native = SYSTEM + 'SOURCE = "kernel.cpp"\n'
    before = package(system=native, helper="")
    (tmp_path / "mine/kernel.cpp").write_text("int one;")
    after = package(system=native, helper="")
    (tmp_path / "mine/kernel.cpp").write_text("int two;")
    assert len({before, after, package(system=native, helper="")}) == 3


def test_the_cluster_decides_which_entry_point_counts():
    ids = {digest_with(DENSE, kind) for kind in ("gloo", "emulated", "simulated")}
    assert len(ids) == 2
