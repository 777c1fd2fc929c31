"""Checks of module options: ValueError "<module>: expected <option> <what>, but got <value>"."""

from collections.abc import Sequence


def check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{what} in {{{', '.join(choices)}}}, but got '{value}'")


def check_positive(what: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{what} >= 1, but got {value}")


def check_probability(what: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{what} in [0, 1), but got {value}")
