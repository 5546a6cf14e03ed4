"""Errors caused by the user; each is printed as one message."""

import difflib
import re
from collections.abc import Iterable


class ConfigError(ValueError):
    """A wrong option, file or directory.

    The message names the option or file, what was found, what is allowed and what to do. Commands print it on one line,
    without a traceback, and exit with status 2.
    """


class SharedError(ConfigError):
    """An error that all ranks raise at the same point, and that only rank 0 prints."""


class DivergedError(SharedError):
    """Training cannot continue: gradients, weights or moments are not finite."""


def require(condition: bool, option: str, found: object, allowed: str) -> None:
    """Raise ``ConfigError`` unless ``condition`` holds: what ``option`` is, what is allowed, the nearest choice."""
    if not condition:
        choices = re.split(r", | \| ", allowed)
        is_list = isinstance(found, str) and all(re.fullmatch(r"[\w.-]+", choice) for choice in choices)
        near = difflib.get_close_matches(str(found), choices, 1) if is_list else []
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"{option} is {found!r}; allowed: {allowed}{hint}")


def did_you_mean(found: str, allowed: Iterable[str]) -> str:
    """For messages: the entries of ``allowed`` nearest to ``found``, and all of them."""
    known = list(allowed)
    near = difflib.get_close_matches(found, known, 3, 0.5)
    return (f"did you mean {' or '.join(near)}? " if near else "") + f"allowed: {', '.join(known)}"
