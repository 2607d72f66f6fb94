"""Which code and data a cell's numbers rest on, so that a cell is measured again when they change and only then.

Code is the import closure of what a rank runs: the modules of its entry point and of every class that is configured,
and all that these import, here or in a system author's own package, lazily too. Comments and docstrings are left out.
Installed packages are known by their versions.
"""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from experiments.configuration import digest, find_class, is_node, options
from experiments.records import Workload
from workloads.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[1]
# The packages of this project: where it is installed others lie beside them.
OURS = {"analysis", "clusters", "devices", "experiments", "routers", "systems", "workloads"}
ENTRIES = {"simulated": "experiments.simulate"}  # by cluster
MEASURING = "experiments.worker"  # of all other clusters
NATIVE = (".cpp", ".cu", ".cuh", ".h")  # sources that a module names beside itself
INSTALLED = {"site-packages", "dist-packages"}


class Source(NamedTuple):
    """A module's content as a hash, and the names of what it may import, of which some are no modules."""

    content: str
    imports: frozenset[str]


def code_digest(workload: Workload) -> str:
    """12 hexadecimal digits of all code that a rank of this workload, or configuration, runs; loggers are the parent's.

    A stored configuration has the same digest as the one that was measured.
    """
    entry = ENTRIES.get(workload.cluster.kind, MEASURING)
    given = {name: part for name, part in vars(workload).items() if name != "logger"}
    classes = {base for node in _nodes(given) for base in find_class(node).__mro__}
    return _closure_digest(frozenset({entry, *(base.__module__ for base in classes)}))


def data_digest(workload: Workload) -> str:
    """The same of the files that decide weights and routing: a checkpoint's index, a recorded trace."""
    checkpoint = workload.model.checkpoint
    files = open_checkpoint(checkpoint).describing_files if checkpoint else []
    if trace := getattr(find_class(workload.router), "trace_file", None):
        files = [*files, trace(**options(workload.router, "router"))]
    return digest([_file_digest(path) for path in files])


@cache
def closure(start: frozenset[str]) -> dict[str, Source]:
    """By name, the modules of `start` and all that they import, except what is installed or Python's own."""
    found: dict[str, Source] = {}
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name not in found and (source := _source(name)):
            found[name] = source
            waiting += source.imports
    return found


@cache
def _closure_digest(start: frozenset[str]) -> str:
    return digest(sorted((name, source.content) for name, source in closure(start).items()))


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All that name a class, within one another."""
    if isinstance(value, dict):
        if is_node(value):
            yield value
        for part in value.values():
            yield from _nodes(part)


@cache
def _source(name: str) -> Source | None:
    path = _file(name)
    if path is None:
        return None
    tree = ast.parse(path.read_text())
    imports = frozenset(part for each in _imported(tree, name, path) for part in _with_parents(each))
    native = [path.with_name(text) for text in _strings(tree) if text.endswith(NATIVE)]
    bodies = [_without_docstrings(tree), *(_file_digest(each) for each in native if each.is_file())]
    return Source(digest(bodies), imports)


def _file(name: str) -> Path | None:
    """Where a module of this repository, or of an author's own code, is; None for all other names."""
    package, _, rest = name.partition(".")
    for folder in _folders(package):
        stem = folder.joinpath(package, *rest.split(".")) if rest else folder / package
        for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
            if path.is_file():
                return path
    return None


@cache
def _folders(package: str) -> list[Path]:
    """The folders that a package or module of this name lies in; none where it is installed or Python's own."""
    if package in OURS:
        return [ROOT]
    try:
        spec = None if package in sys.stdlib_module_names else importlib.util.find_spec(package)
    except (ImportError, ValueError):  # not here
        spec = None
    if spec is None:
        return []
    places = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
    folders = [Path(place).parent for place in places]
    return [folder for folder in folders if not INSTALLED & set(folder.parts)]


def _imported(tree: ast.Module, name: str, path: Path) -> Iterator[str]:
    """Modules that are imported anywhere, and what is imported from them, which may be modules."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            levels = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*levels, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> Iterator[str]:
    """a.b.c, a.b and a: importing the first runs the packages too."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _strings(tree: ast.Module) -> Iterator[str]:
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def _without_docstrings(tree: ast.Module) -> str:
    """The code alone: strings that stand by themselves say what modules, classes, functions and fields are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [one for one in node.body if not _is_text(one)]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
