"""Every key of conf/: its type, its values, and what it means, from the files, their comments and the classes."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml

from clusters.session import ClusterSpec
from experiments.configuration import SUPPLIED, find_class

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
MEANINGS = ROOT / "docs/reference/meanings.yaml"
TAGS = {"int": "int", "float": "float", "bool": "bool", "str": "str", "seq": "list", "map": "mapping"}
INTERPOLATION = re.compile(r"\$\{([a-z_.]+)\}")
HIDDEN = {"defaults", "hydra", "_target_"}
WHOLE = {"devices", "grouped", "about"}  # mappings that are data, not keys of their own
# What the harness gives to constructors, or what stands elsewhere in a configuration.
HIDDEN_PARAMETERS = {"self", "seed", "rank", "engine", "planner", "tables", "late", "num_experts", "probabilities_E"}
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
    told = meanings()["groups"]
    keys = [Key(name, {"": value}, {"name"}, told[name]) for name, value in chosen.items()]
    return keys + _keys_of("", {"": CONF / "config.yaml"})


def group_keys(group: str) -> list[Key]:
    """The keys of all options of a group together."""
    return _keys_of(group, {option.name: CONF / group / f"{option.name}.yaml" for option in options(group)})


def _keys_of(group: str, files: dict[str, Path]) -> list[Key]:
    keys: dict[str, Key] = {}
    for option, path in files.items():
        for name, node, comment in _walk(path):
            key = keys.setdefault(name, Key(name))
            key.values[option] = _text(node)
            key.types.add(_type(node))
            key.meaning = key.meaning or comment
    for option, path in files.items():
        for name, parameter in _parameters(group, _document(path)).items():
            if any(other.startswith(f"{name}.") for other in keys):
                continue
            key = keys.setdefault(name, Key(name, added=True))
            if key.added:
                key.values[option] = "" if parameter.default is parameter.empty else _plain(parameter.default)
            key.types |= {_annotation(parameter)} - {""}
            key.meaning = key.meaning or _from_docstring(group, _document(path), name)
    for key in keys.values():
        _complete(group, key)
    return list(keys.values())


def _complete(group: str, key: Key) -> None:
    """What meanings.yaml says wins; a type that only null or an annotation tells is made plain."""
    told = meanings()["keys"].get(f"{group}.{key.name}".lstrip("."), {})
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


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _classes(group: str, document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The classes that an option builds, each with the prefix of its keys."""
    if group == "cluster":
        yield "", ClusterSpec
    if "_target_" in document:
        yield "", find_class(document)
    for name, value in document.items():
        if isinstance(value, dict) and "_target_" in value:
            yield f"{name}.", find_class(value)


def _parameters(group: str, document: dict[str, Any]) -> dict[str, inspect.Parameter]:
    """What the classes of an option take from a configuration, their base classes' parameters included."""
    found: dict[str, inspect.Parameter] = {}
    for prefix, kind in _classes(group, document):
        for base in kind.__mro__:
            if "__init__" in vars(base) and base.__module__ != "builtins":
                for parameter in inspect.signature(base.__init__).parameters.values():
                    found.setdefault(prefix + parameter.name, parameter)
    ours = {name: one for name, one in found.items() if name.rpartition(".")[2] not in SUPPLIED | HIDDEN_PARAMETERS}
    return {name: one for name, one in ours.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}


def _annotation(parameter: inspect.Parameter) -> str:
    """A type in the words of a configuration; "" for one that a configuration does not type."""
    kind = parameter.annotation
    names = [_type_name(part) for part in get_args(kind) or (kind,)] if _is_union(kind) else [_type_name(kind)]
    return " or ".join(names) if all(names) else ""


def _is_union(kind: Any) -> bool:
    return type(kind).__name__ in ("UnionType", "Union", "_UnionGenericAlias")


def _type_name(kind: Any) -> str:
    return {type(None): "null", int: "int", float: "float", bool: "bool", str: "str"}.get(kind, "")


def _from_docstring(group: str, document: dict[str, Any], name: str) -> str:
    """What a class says of an option, as docstrings here do: `name: what it is.`"""
    for prefix, kind in _classes(group, document):
        if not name.startswith(prefix) or "." in (own := name.removeprefix(prefix)):
            continue
        for base in kind.__mro__:
            told = re.search(
                rf"(?:^|[.\s]){own}(?:, \w+)*: (.+?)(?=\s[\w, ]+: |\n\n|\Z)", base.__doc__ or "", re.DOTALL
            )
            if told:
                return " ".join(told.group(1).split())
    return ""
