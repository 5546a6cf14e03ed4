"""``corpus.rule``: a rule of the user's own, a Python function that changes or drops documents."""

import functools
import hashlib
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bert_pretrain.errors import ConfigError
from data_prep.sources.cleaning import Dropped
from data_prep.sources.documents import Document, text_paragraphs

Verdict = str | None | tuple[None, str]
"""The new text of a document; None, which drops it; or None and the reason to count it under."""

_DROPPED = "own_rule"


def check_rule(rule: str) -> str:
    """The hash of the rule's file. Raises ``ConfigError`` if there is no such file or function."""
    file, _ = _parts(rule)
    _function(rule, file.stat().st_mtime_ns)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def apply_rule(document: Document, rule: str, dropped: Dropped) -> Document | None:
    """The document that the rule makes of it, or None. Raises ``ConfigError`` if the function fails."""
    text = "\n".join(document.paragraphs)
    function = _function(rule, _parts(rule)[0].stat().st_mtime_ns)
    try:
        verdict = function(text)
    except Exception as error:  # of the user's code
        raise ConfigError(
            f"corpus.rule {rule} failed on document {document.name}: {type(error).__name__}: {error}; mend the function"
        ) from None
    if isinstance(verdict, str):
        return replace(document, paragraphs=text_paragraphs(verdict))
    match verdict:
        case None:
            dropped.add(_DROPPED, text)
        case (None, str(reason)):
            dropped.add(f"{_DROPPED}_{'_'.join(reason.split())}", text)
        case _:
            raise ConfigError(
                f"corpus.rule {rule} returned {verdict!r:.80} for document {document.name}; it must return a text, "
                "None, or (None, reason)"
            )
    return None


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
    try:
        found = runpy.run_path(str(file)).get(name)
    except Exception as error:  # of the user's code
        raise ConfigError(f"corpus.rule {rule} cannot be loaded: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise ConfigError(f"corpus.rule is {rule!r}, but {file} has no function {name}")
    function: Callable[[str], Verdict] = found
    return function
