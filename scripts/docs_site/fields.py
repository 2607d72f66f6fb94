"""What the records of `experiments/records.py` say of their fields: types, defaults and meanings."""

import ast
import inspect
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Any, NamedTuple, get_type_hints

from experiments.records import Config, Experiment, Panel
from experiments.values import parts

TYPES = {NoneType: "null", int: "int", float: "float", bool: "bool", str: "str", list: "list", dict: "mapping"}


class Field(NamedTuple):
    """A key of a record; a default of "" is none."""

    name: str
    type: str
    default: str
    meaning: str


def records() -> dict[str, Any]:
    """The groups of which a record is, each with it."""
    kinds = get_type_hints(Config)
    return {group: kinds[group] for group in kinds if is_dataclass(kinds[group])} | {"panel": Panel}


def group_meaning(group: str) -> str:
    """What a group is for."""
    return meanings_in(Experiment)["panels"] if group == "panel" else meanings_in(Config)[group]


def fields_of(kind: Any) -> list[Field]:
    """The fields of a record; panels, which an experiment has by name, are a group of their own."""
    types, meanings, found = get_type_hints(kind), meanings_in(kind), []
    for one in fields(kind):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        shown = "" if default is MISSING else plain(default)
        found.append(Field(one.name, type_in_words(types[one.name]), shown, meanings[one.name]))
    return [one for one in found if one.name != "panels"]


@cache
def meanings_in(kind: Any) -> dict[str, str]:
    """By name, the string under each field of a record."""
    meanings = {}
    for base in kind.__mro__[:-1]:
        (record,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(record, ast.ClassDef)
        for one, text in pairwise(record.body):
            if isinstance(one, ast.AnnAssign) and isinstance(text, ast.Expr):
                meanings[ast.unparse(one.target)] = " ".join(ast.literal_eval(text.value).split())
    return meanings


def type_in_words(kind: Any) -> str:
    """A type in the words of a configuration; "" for one that a configuration does not type."""
    names = [TYPES.get(part, "") for part in parts(kind)]
    return " or ".join(names) if all(names) else ""


def plain(value: Any) -> str:
    """A value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
