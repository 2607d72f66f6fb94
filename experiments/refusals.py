"""What Hydra refuses, in one sentence that names the value and what may have been meant."""

import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

# Lines of Hydra's that say nothing to who types a command.
UNREAD = ("To append to", "Config search path", "provider=", "Set the environment", "full_key", "object_type")


def refusal(said: str, configuration: Callable[[], dict[str, Any]]) -> str:
    """The sentence for what Hydra said; configuration: what keys there are, composed where it is needed."""
    if unknown := re.search(r"Could not override '(.+?)'", said):
        known = configuration()
        return f"there is no key {unknown[1]!r}; {_meant(unknown[1], list(_keys(known)), 'the keys are', list(known))}"
    if missing := re.search(r"Could not find '(.+)/(.+?)'", said):
        there = re.findall(r"^[ \t]+(\S+)$", said.partition("Available options")[2], re.MULTILINE)
        return f"there is no {missing[1]} {missing[2]!r}; {_meant(missing[2], there, 'there are')}"
    if stray := re.search(r"error: unrecognized arguments: (.*)", said):
        return f"{stray[1]} cannot stand there: options such as -m come before the first key=value"
    lines = (line.strip() for line in said.splitlines())
    return " ".join(line for line in lines if line and not line.startswith(UNREAD))


def _meant(typed: str, known: list[str], called: str, shown: list[str] | None = None) -> str:
    """The nearest of the known names, or those there are."""
    like = get_close_matches(typed, known, n=1)
    return f"did you mean {like[0]!r}?" if like else f"{called} {', '.join(sorted(shown or known))}"


def _keys(node: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield before + key
        if isinstance(value, dict):
            yield from _keys(value, f"{before}{key}.")
