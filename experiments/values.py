"""What a value may be, checked and said in words, for fields of records and for options of classes alike.

A type is checked where it consists of those in WORDS; limits are `least`, `above`, `below` and `one_of`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}
LIMITS = {"least": "of at least {}", "above": "above {}", "below": "and below {}"}
Limits = Mapping[str, Any]


def parts(kind: Any) -> tuple[Any, ...]:
    """The types of which a type consists, without what they hold: int | None, list[str]."""
    union = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(get_origin(part) or part for part in union)


def plain_types(kind: Any) -> tuple[type, ...]:
    """The same of a value that is a number, a text, a list or null; none for what is checked elsewhere."""
    return parts(kind) if all(one in WORDS or one is NoneType for one in parts(kind)) else ()


def in_words(kind: Any, limits: Limits) -> str:
    """What a value of this type may be."""
    words = [WORDS[one] for one in plain_types(kind) if one is not NoneType]
    if "one_of" in limits:
        words = [f"one of {', '.join(limits['one_of'])}"]
    limited = [" or ".join(words), *(text.format(limits[name]) for name, text in LIMITS.items() if name in limits)]
    return " ".join(limited) + (", or null" if NoneType in plain_types(kind) else "")


def check_value(name: str, value: Any, kind: Any, limits: Limits) -> None:
    """Raise ValueError, in one sentence, for a value of another type or beyond its limits."""
    types = plain_types(kind)
    if types and not (_is_of(value, types) and (value is None or _is_within(value, limits))):
        raise ValueError(f"{name} is {value!r}; it must be {in_words(kind, limits)}")


def _is_of(value: Any, types: tuple[type, ...]) -> bool:
    return type(value) in types or (type(value) is int and float in types)  # true and false are no numbers


def _is_within(value: Any, limits: Limits) -> bool:
    return (
        value in limits.get("one_of", [value])
        and value >= limits.get("least", value)
        and ("above" not in limits or value > limits["above"])
        and ("below" not in limits or value < limits["below"])
    )


def check_record(record: Any, before: str = "") -> None:
    """The same for every field of a record and of the records in it; before: the name of the record, and a dot."""
    types = get_type_hints(type(record))
    for one in fields(record):
        value = getattr(record, one.name)
        if is_dataclass(value):
            check_record(value, f"{before}{one.name}.")
        else:
            check_value(before + one.name, value, types[one.name], one.metadata)


def field_in_words(kind: Any, key: str) -> str:
    """What the value of a key such as tier.rounds may be; "" where no record says so."""
    first, _, rest = key.partition(".")
    if get_origin(kind) is dict:
        return field_in_words(get_args(kind)[1], rest)
    known = {one.name: one for one in fields(kind)} if is_dataclass(kind) else {}
    if first not in known:
        return ""
    own = get_type_hints(kind)[first]
    return field_in_words(own, rest) if rest else in_words(own, known[first].metadata)


def meant(typed: str, known: Sequence[str], called: str, shown: Sequence[str] = ()) -> str:
    """The nearest of the known names, or those there are."""
    like = get_close_matches(typed, known, n=1)
    return f"did you mean {like[0]!r}?" if like else f"{called} {', '.join(sorted(shown or known)) or 'none'}"
