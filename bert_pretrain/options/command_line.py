"""The words of a command line: flags apart, options checked by name, text quoted for Hydra.

Everything here works on names alone, before a configuration is composed, so that a typing mistake is reported at once.
"""

import argparse
import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from bert_pretrain.errors import ConfigError, did_you_mean
from bert_pretrain.options.config_files import choices, groups_of
from bert_pretrain.options.option_schema import ANY_NAME, Option, options_of

_ALLOWED = {"integer": "a whole number", "number": "a number", "true|false": "true or false"}
_KEPT = re.compile(r"""null|'.*'|".*"|.*\$\{.*""", re.DOTALL)
"""Values of text options that mean what Hydra's grammar says: null, quoted text, interpolations."""


FLAGS = ["--help", "--cfg", "--config-dir"]
"""The flags that every command has, in full."""


def split_flags(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags that every command has (``help``, ``cfg``, ``config_dir``), and the other words, in order.

    Raises ``ConfigError`` for an unknown flag or a flag without its value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--config-dir")
    try:
        flags, others = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; --help explains the flags") from None
    if unknown := [word for word in others if word.startswith("-")]:
        raise ConfigError(f"{unknown[0]} is not a flag of this command; {did_you_mean(unknown[0], FLAGS)}")
    return flags, others


def checked_words(words: list[str], config_name: str, schema: type, user_dir: Path | None) -> list[str]:
    """``words`` as Hydra takes them. Raises ``ConfigError`` for an option, a group or a choice that does not exist."""
    options, groups = options_of(schema), groups_of(config_name)
    checked = [_checked(word, options, groups, user_dir) for word in words]
    chosen = {word.partition("=")[0] for word in words}
    for group, choice in groups.items():
        if choice == "???" and group not in chosen:
            raise ConfigError(f"no {group} is chosen; give {group}=NAME, one of {', '.join(choices(group, user_dir))}")
    return checked


def nearest_options(name: str, schema: type) -> str:
    """A hint at the options of ``schema`` whose names are near ``name``."""
    return _nearest(name, [option.name for option in options_of(schema)], ())


def _checked(word: str, options: tuple[Option, ...], groups: Iterable[str], user_dir: Path | None) -> str:
    key, equals, value = word.partition("=")
    name = key.lstrip("+~")
    names = [option.name for option in options]
    if name.startswith("hydra."):
        return word
    if not equals and not key.startswith("~"):
        raise ConfigError(f"{word!r} is not of the form option=value; {_nearest(word, names, groups)}")
    group = name.partition("@")[0]
    if "@" in name or name in groups:
        if value != "null" and "${" not in value and (allowed := choices(group, user_dir)) and value not in allowed:
            raise ConfigError(f"{key}={value}: there is no {group} {value!r}; {did_you_mean(value, allowed)}")
        return word
    option = next((option for option in options if _matches(option.name, name)), None)
    if option is None:
        depth = len(name.split("."))
        if any(_matches(".".join(known.split(".")[:depth]), name) for known in names):  # a mapping for a whole group
            return word
        raise ConfigError(f"there is no option {name!r}; {_nearest(name, names, groups)}")
    if key.startswith("~"):
        raise ConfigError(f"{word}: an option cannot be removed; give it another value")
    if _KEPT.fullmatch(value):
        return word
    _check_value(name, value, option)
    if option.name.endswith(f".{ANY_NAME}"):  # a key of a mapping, which may be new
        key = f"++{name}"
    return f"{key}={quoted(value) if option.is_text else value}"


def _check_value(name: str, value: str, option: Option) -> None:
    """Raise ``ConfigError`` for a ``value`` that is not of the option's type."""
    kind = option.type.removesuffix(" or null")
    optional = option.type.endswith("null")
    if not value.strip() and not (option.is_text and optional):
        raise ConfigError(f"{name} is empty; give a value, as in {name}=VALUE")
    if kind in _ALLOWED and not _is_a(kind, value):
        raise ConfigError(f"{name} is {value!r}; allowed: {_ALLOWED[kind]}{' or null' if optional else ''}")
    if kind.startswith("list of ") and not value.lstrip().startswith("["):
        raise ConfigError(f"{name} is {value!r}; allowed: a list, as in {name}=[{value}]")


def _is_a(kind: str, value: str) -> bool:
    if kind == "true|false":
        return value.lower() in ("true", "false", "yes", "no", "on", "off", "0", "1")
    try:
        (int if kind == "integer" else float)(value)
    except ValueError:
        return False
    return True


def quoted(text: str) -> str:
    """``text`` as Hydra's grammar takes any text, a leading ``~/`` as the home directory."""
    text = str(Path(text).expanduser()) if text == "~" or text.startswith("~/") else text
    if re.fullmatch(r"[\w.-]*(/[\w.-]+)+", text, re.ASCII):
        return text  # a plain path stays readable where a command is printed
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", text)) + "'"


def _matches(option: str, name: str) -> bool:
    """Whether ``name`` is ``option``, in which NAME stands for any key."""
    parts, given = option.split("."), name.split(".")
    return len(parts) == len(given) and all(part in (ANY_NAME, word) for part, word in zip(parts, given, strict=True))


def _nearest(name: str, options: list[str], groups: Iterable[str]) -> str:
    """Up to three options near ``name``: by the whole name, or by its last part."""
    prefixes = {option.rpartition(".")[0] for option in options} - {""}
    near = difflib.get_close_matches(name, {*options, *groups, *prefixes}, 3, 0.6)
    last = name.rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for option in options:
        by_last.setdefault(option.rpartition(".")[2], []).append(option)
    for part in difflib.get_close_matches(last, by_last, 3, 0.75):
        near += [option for option in by_last[part] if option not in near]
    hint = f"did you mean {' or '.join(near[:3])}? " if near else ""
    return f"{hint}--help lists all options"
