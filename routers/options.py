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


def record_parts(held_out: float, recorded: int) -> tuple[range, range]:
    """What of a record is measured, and the last `held_out` share of it, for profiles; all for both where that is none.

    Raises ValueError unless the share is a number from 0 up to less than 1 that leaves something to measure.
    """
    number = isinstance(held_out, int | float) and not isinstance(held_out, bool) and 0 <= held_out < 1
    first = recorded - round(held_out * recorded) if number else 0
    if first == 0:
        raise ValueError(f"router.held_out is {held_out!r}; it must be a share of the record, at least 0 and below 1")
    return range(first), range(first, recorded) if first < recorded else range(first)
