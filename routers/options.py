"""Checks of routers' options: a ValueError is one sentence that names the option, its value and what is allowed."""

import math


def check_not_negative(option: str, value: float) -> None:
    """A finite number of at least 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f"router.{option} is {value}; it must not be negative, infinite or NaN")


def check_whole_number(option: str, value: int, least: int) -> None:
    """An int of at least `least`; a bool is none."""
    if type(value) is not int or value < least:
        raise ValueError(f"router.{option} is {value!r}; it must be a whole number of at least {least}")


def check_switch(option: str, value: bool) -> None:
    """True or false, and not a word that only looks so."""
    if type(value) is not bool:
        raise ValueError(f"router.{option} is {value!r}; it must be true or false")
