"""Write requirements.lock from the packages installed here: `python -m scripts.lock > requirements.lock`.

To upgrade, install what you want into .venv beside the CPU build of torch, run the tests, then this.
"""

import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HEADER = """\
# Exact versions of everything that `make setup` installs, written by scripts/lock.py.
# torch has no local version here: PyPI's CUDA build and the CPU build (make setup TORCH_INDEX=...) both satisfy it.
"""


def required(requirements: list[str], extras: set[str]) -> list[Requirement]:
    """The requirements whose markers hold here, with any of the extras or none."""
    parsed = [Requirement(text) for text in requirements]
    return [r for r in parsed if not r.marker or any(r.marker.evaluate({"extra": extra}) for extra in extras | {""})]


def closure(roots: list[Requirement]) -> dict[str, Version]:
    """Installed version of every distribution reachable from the roots, by canonical name."""
    versions: dict[str, Version] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = list(roots)
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        found = distribution(requirement.name)
        versions[key[0]] = Version(found.version)
        todo += required(found.requires or [], requirement.extras)
    return versions


def project_requirements(pyproject: Path) -> list[Requirement]:
    """What building, using and developing this project asks for."""
    tables = tomllib.loads(pyproject.read_text())
    project = tables["project"]
    developing = project["optional-dependencies"]["dev"]
    return required(tables["build-system"]["requires"] + project["dependencies"] + developing, set())


if __name__ == "__main__":
    pins = closure(project_requirements(Path("pyproject.toml")))
    print(HEADER + "\n".join(f"{name}=={pins[name].public}" for name in sorted(pins)))
