"""Checks of planners' options: a ValueError is one sentence that names the option, its value and what is allowed."""


def check_whole_number(option: str, value: int, least: int) -> None:
    """An int of at least `least`; a bool is none."""
    if type(value) is not int or value < least:
        raise ValueError(f"planner.{option} is {value!r}; it must be a whole number of at least {least}")
