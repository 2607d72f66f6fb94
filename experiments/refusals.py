"""What Hydra refuses, in one sentence that names the value and what may have been meant."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from experiments.records import Config
from experiments.values import field_in_words, meant

# Lines of Hydra's that say nothing to who types a command.
UNREAD = ("To append to", "Config search path", "provider=", "Set the environment", "full_key", "object_type")
UNKNOWN = re.compile(r"Could not override '(?P<key>.+?)'|Key '.+?' not in '\w+'\s+full_key: (?P<added>\S+)")
MISTYPED = re.compile(r"Value '(?P<value>.*?)'.* \W?type '?(?P<kind>\w+).*\s+full_key: (?P<key>\S+)")
NULL = re.compile(r"field '(?P<key>\S+)' is not Optional")
NO_LIST = re.compile(r"is not a ListConfig.*\s+full_key: (?P<key>\S+)")


def refusal(said: str, configuration: Callable[[], dict[str, Any]]) -> str:
    """The sentence for what Hydra said; configuration: what keys there are, composed where it is needed."""
    if unknown := UNKNOWN.search(said):
        key, known = unknown["key"] or unknown["added"], configuration()
        return f"there is no key {key!r}; {meant(key, list(_keys(known)), 'the keys are', list(known))}"
    if missing := re.search(r"Could not find '(.+)/(.+?)'", said):
        there = re.findall(r"^[ \t]+(\S+)$", said.partition("Available options")[2], re.MULTILINE)
        return f"there is no {missing[1]} {missing[2]!r}; {meant(missing[2], there, 'there are')}"
    if stray := re.search(r"error: unrecognized arguments: (.*)", said):
        return f"{stray[1]} cannot stand there: options such as -m come before the first key=value"
    if (wrong := MISTYPED.search(said)) and (allowed := field_in_words(Config, wrong["key"])):
        value = repr(wrong["value"]) if wrong["kind"] == "str" else wrong["value"]
        return f"{wrong['key']} is {value}; it must be {allowed}"
    for pattern, value in ((NULL, "null"), (NO_LIST, "no list")):
        if (wrong := pattern.search(said)) and (allowed := field_in_words(Config, wrong["key"])):
            return f"{wrong['key']} is {value}; it must be {allowed}"
    if said.startswith("Traceback"):
        said = said.rstrip().rpartition("\n")[2].partition(": ")[2]
    lines = (line.strip() for line in said.splitlines())
    return " ".join(line for line in lines if line and not line.startswith(UNREAD))


def _keys(node: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield before + key
        if isinstance(value, dict):
            yield from _keys(value, f"{before}{key}.")
