"""Every key of conf/: its type, its values, and what it means.

Keys of records are as their fields say; those of nodes, which name a class, as files, comments and the class do.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from experiments.configuration import SUPPLIED, find_class, parameters
from experiments.records import Config
from scripts.docs_site.fields import fields_of, group_meaning, plain, records, type_in_words

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
MEANINGS = ROOT / "docs/reference/meanings.yaml"
TAGS = {"int": "int", "float": "float", "bool": "bool", "str": "str", "seq": "list", "map": "mapping"}
INTERPOLATION = re.compile(r"\$\{([a-z_.]+)\}")
HIDDEN = {"defaults", "hydra", "_target_"}
WHOLE = {"devices", "grouped", "about"}  # mappings that are data, not keys of their own
# What the harness gives to constructors, or what stands elsewhere in a configuration.
HIDDEN_PARAMETERS = {"seed", "planner", "tables", "late", "num_experts", "probabilities_E"}
OF_THIS_MACHINE = {"network": "*_here.yaml", "device": "here.yaml"}  # as .gitignore has them
PART = re.compile(r"/\w+@(\w+)")  # of `defaults`: an option of a group as a part of this one


@dataclass
class Key:
    """One key of a group. values: by option, as they stand in the files. added: a class takes it and no file has it."""

    name: str
    values: dict[str, str] = field(default_factory=dict)
    types: set[str] = field(default_factory=set)
    meaning: str = ""
    added: bool = False


@dataclass(frozen=True)
class Option:
    """One file of a group: what its first comment says, and what it takes from other groups."""

    name: str
    about: str
    document: dict[str, Any]


@cache
def meanings() -> dict[str, Any]:
    """What neither a comment nor a class says of a key: docs/reference/meanings.yaml."""
    return yaml.safe_load(MEANINGS.read_text())


def groups() -> list[str]:
    """The folders of conf/, in the order in which config.yaml chooses from them; those it leaves out are last."""
    chosen = [name for one in _document(CONF / "config.yaml")["defaults"] if isinstance(one, dict) for name in one]
    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    return [name for name in chosen if name in folders] + sorted(folders - set(chosen))


def options(group: str) -> list[Option]:
    """The files of a group that belong to the project: what was measured on this machine is left out."""
    measured = OF_THIS_MACHINE.get(group, "")
    paths = [path for path in sorted((CONF / group).glob("*.yaml")) if not (measured and path.match(measured))]
    return [Option(path.stem, _about(path), _document(path)) for path in paths]


def _about(path: Path) -> str:
    lines = path.read_text().splitlines()
    first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:first])


def _document(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}


def top_level() -> list[Key]:
    """The keys of config.yaml itself: the choice in each group, and the numbers beside it."""
    chosen = {name: str(value) for one in _document(CONF / "config.yaml")["defaults"] if isinstance(one, dict)
              for name, value in one.items() if name in groups()}  # fmt: skip
    keys = [Key(name, {"": value}, {"name"}, group_meaning(name)) for name, value in chosen.items()]
    return keys + [key for key in _record_keys(Config, {"": CONF / "config.yaml"}) if key.name not in chosen]


def group_keys(group: str) -> list[Key]:
    """The keys of all options of a group together."""
    files = {option.name: CONF / group / f"{option.name}.yaml" for option in options(group)}
    return _record_keys(records()[group], files) if group in records() else _node_keys(group, files)


def _record_keys(kind: Any, files: dict[str, Path]) -> list[Key]:
    written = {option: {name: _text(node) for name, node, _ in _walk(path)} for option, path in files.items()}
    keys = []
    for one in fields_of(kind):
        values = {option: found.get(one.name, one.default) for option, found in written.items()}
        keys.append(Key(one.name, values, {one.type}, one.meaning))
    return keys


def _node_keys(group: str, files: dict[str, Path]) -> list[Key]:
    keys: dict[str, Key] = {}
    for option, path in files.items():
        for name, node, comment in _walk(path):
            key = keys.setdefault(name, Key(name))
            key.values[option] = _text(node)
            key.types.add(_type(node))
            key.meaning = key.meaning or comment
    for option, path in files.items():
        for name, parameter in _parameters(_document(path)).items():
            if any(other.startswith(f"{name}.") for other in keys):
                continue
            key = keys.setdefault(name, Key(name, added=True))
            if key.added:
                key.values[option] = "" if parameter.default is parameter.empty else plain(parameter.default)
            key.types |= {type_in_words(parameter.annotation)} - {""}
            key.meaning = key.meaning or _from_docstring(_document(path), name)
    for key in keys.values():
        _complete(group, key)
    return list(keys.values())


def _complete(group: str, key: Key) -> None:
    """What meanings.yaml says wins; a type that only null or an annotation tells is made plain."""
    told = meanings()["keys"].get(f"{group}.{key.name}", {})
    told = {"meaning": told} if isinstance(told, str) else told
    key.meaning = told.get("meaning", key.meaning)
    if "type" in told:
        key.types = {told["type"]}


def _walk(path: Path) -> Iterator[tuple[str, yaml.Node, str]]:
    """Dotted name, value and comment of every key of a file; what is written in braces is one value."""
    text = path.read_text()
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from _walk_parts(root)
        yield from _walk_mapping(root, "", text.splitlines())


def _walk_parts(root: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, str]]:
    defaults = next((value.value for name, value in root.value if name.value == "defaults"), [])
    for one in defaults:
        for name, value in one.value if isinstance(one, yaml.MappingNode) else ():
            if part := PART.fullmatch(name.value):
                yield part.group(1), value, ""


def _walk_mapping(mapping: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[tuple[str, yaml.Node, str]]:
    for name, value in mapping.value:
        if name.value in HIDDEN:
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style and name.value not in WHOLE:
            yield from _walk_mapping(value, f"{prefix}{name.value}.", lines)
        else:
            yield prefix + name.value, value, _comment(lines[value.start_mark.line])


def _comment(line: str) -> str:
    return line.partition("  # ")[2].strip()


def _text(node: yaml.Node) -> str:
    """A value as it stands in the file, in one line."""
    start, end = node.start_mark, node.end_mark
    if isinstance(node, yaml.ScalarNode):
        return node.value
    assert start.buffer is not None
    return " ".join(start.buffer[start.pointer : end.pointer].split())


def _type(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode) and INTERPOLATION.match(node.value):
        return ""
    return {**TAGS, "null": "null"}[node.tag.rpartition(":")[2]]


def _classes(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The classes that an option builds, each with the prefix of its keys."""
    if "_target_" in document:
        yield "", find_class(document)
    for name, value in document.items():
        if isinstance(value, dict) and "_target_" in value:
            yield f"{name}.", find_class(value)


def _parameters(document: dict[str, Any]) -> dict[str, inspect.Parameter]:
    """What the classes of an option take from a configuration, their base classes' parameters included."""
    hidden = SUPPLIED | HIDDEN_PARAMETERS
    return {
        prefix + name: one
        for prefix, kind in _classes(document)
        for name, one in parameters(kind).items()
        if name not in hidden
    }


def _from_docstring(document: dict[str, Any], name: str) -> str:
    """What a class says of an option, as docstrings here do: `name: what it is.`"""
    for prefix, kind in _classes(document):
        if not name.startswith(prefix) or "." in (own := name.removeprefix(prefix)):
            continue
        for base in kind.__mro__:
            told = re.search(
                rf"(?:^|[.\s]){own}(?:, \w+)*: (.+?)(?=\s[\w, ]+: |\n\n|\Z)", base.__doc__ or "", re.DOTALL
            )
            if told:
                return " ".join(told.group(1).split())
    return ""
