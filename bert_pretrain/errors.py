"""Errors that a user can cause, each one message."""

import difflib
import re
from collections.abc import Iterable


class ConfigError(ValueError):
    """A mistake of the user: an option, a file, a directory.

    The message names the option or file, what was found, what is allowed and what to do. Commands print it on one
    line, without a traceback, and end with status 2.
    """


class SharedError(ConfigError):
    """An error that all ranks raise at the same place; rank 0 prints it for all. Any other is printed by its rank."""


class DivergedError(SharedError):
    """Training cannot continue, because gradients, weights or moments are not finite."""


def require(condition: bool, option: str, found: object, allowed: str) -> None:
    """Raise ``ConfigError`` in the common form unless ``condition`` holds."""
    if not condition:
        choices = re.split(r", | \| ", allowed)
        is_list = isinstance(found, str) and all(re.fullmatch(r"[\w.-]+", choice) for choice in choices)
        near = difflib.get_close_matches(str(found), choices, 1) if is_list else []
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"{option} is {found!r}; allowed: {allowed}{hint}")


def did_you_mean(found: str, allowed: Iterable[str]) -> str:
    """The entries of ``allowed`` that are near ``found``, and all of them."""
    known = list(allowed)
    near = difflib.get_close_matches(found, known, 3, 0.5)
    return (f"did you mean {' or '.join(near)}? " if near else "") + f"allowed: {', '.join(known)}"
