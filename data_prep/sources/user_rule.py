"""``corpus.rule``: a rule of the user's own, a Python function that changes or drops documents."""

import functools
import hashlib
import re
import reprlib
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from bert_pretrain.errors import ConfigError, on_one_line
from data_prep.sources.cleaning import Dropped
from data_prep.sources.documents import Document, text_paragraphs

Verdict = str | None | tuple[None, str]
"""The new text of a document; None, which drops it; or None and the reason to count it under."""

Result = TypeVar("Result")
_DROPPED = "own_rule"
_LONGEST_KIND = 60  # letters of a kind of drop
_MOST_KINDS = 50  # in a piece; further ones are own_rule


def check_rule(rule: str) -> str:
    """The hash of the rule's file. Raises ``ConfigError`` if there is no such file or function."""
    file, _ = _parts(rule)
    _function(rule, file.stat().st_mtime_ns)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def apply_rule(document: Document, rule: str, dropped: Dropped) -> Document | None:
    """The document that the rule makes of it, or None. Raises ``ConfigError`` if the function fails.

    A reason is counted by its letters and digits only, the first 60, since a file may get its name.
    """
    text = "\n".join(document.paragraphs)
    function = _function(rule, _parts(rule)[0].stat().st_mtime_ns)
    failed = f"corpus.rule {rule} failed on document {document.name}"
    verdict = _of_user(lambda: function(text), failed, "; mend the function")
    if isinstance(verdict, str):
        return replace(document, paragraphs=text_paragraphs(verdict))
    match verdict:
        case None:
            dropped.add(_DROPPED, text)
        case (None, str(reason)):
            kind = re.sub(r"\W+", "_", f"{_DROPPED} {reason}"[:_LONGEST_KIND]).strip("_")
            known = [name for name in dropped.counts if name.startswith(_DROPPED)]
            dropped.add(kind if kind in known or len(known) < _MOST_KINDS else _DROPPED, text)
        case _:
            found = " ".join(reprlib.repr(verdict).split())
            raise ConfigError(
                f"corpus.rule {rule} returned {found} for document {document.name}; it must return a text, None, or "
                "(None, reason)"
            )
    return None


def _of_user(work: Callable[[], Result], what: str, advice: str = "") -> Result:
    """``work()``, which runs the user's code. Raises ``ConfigError`` if that fails or wants to exit."""
    try:
        return work()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ConfigError(f"{what}: {type(error).__name__}: {on_one_line(error)}{advice}") from None


def _parts(rule: str) -> tuple[Path, str]:
    file, colon, name = rule.rpartition(":")
    if not colon or not name.isidentifier() or not file.endswith(".py"):
        raise ConfigError(f"corpus.rule is {rule!r}; it takes a file and a function, as in rules.py:clean")
    if not Path(file).is_file():
        raise ConfigError(f"corpus.rule is {rule!r}, but there is no file {file}")
    return Path(file), name


@functools.lru_cache
def _function(rule: str, changed: int) -> Callable[[str], Verdict]:
    """Cached for all documents of a process. ``changed`` is the file's modification time."""
    file, name = _parts(rule)
    found = _of_user(lambda: runpy.run_path(str(file)).get(name), f"corpus.rule {rule} cannot be loaded")
    if not callable(found):
        raise ConfigError(f"corpus.rule is {rule!r}, but {file} has no function {name}")
    function: Callable[[str], Verdict] = found
    return function
