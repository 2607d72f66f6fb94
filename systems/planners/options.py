"""Checks of planners' options: a ValueError is one sentence that names the option, its value and what is allowed."""


def check_whole_number(option: str, value: int, least: int) -> None:
    """An int of at least `least`; a bool is none."""
    if type(value) is not int or value < least:
        raise ValueError(f"planner.{option} is {value!r}; it must be a whole number of at least {least}")


def check_positive(option: str, value: float) -> None:
    """A finite number above 0; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"planner.{option} is {value!r}; it must be a positive number")


def check_flag(option: str, value: bool) -> None:
    """True or false."""
    if type(value) is not bool:
        raise ValueError(f"planner.{option} is {value!r}; it must be true or false")
