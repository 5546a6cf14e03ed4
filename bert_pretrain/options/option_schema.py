"""The options of a command, read from its dataclass: names, types, meanings, and the help page that lists them.

A meaning is the string below a field. The help, the check of the command line and the program all read the dataclass,
so they cannot differ.
"""

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from bert_pretrain.options.config_files import choices, groups_of

ANY_NAME = "NAME"
"""Stands in an option's name for a key that the user chooses, as in ``mix.NAME.path``."""
_WIDTH = 110
_NAMES = 32  # columns for the names of options
_TYPES: dict[Any, str] = {Any: "integer or text", int: "integer", float: "number", bool: "true|false", str: "text"}


@dataclass(frozen=True)
class Option:
    """One option of a command."""

    name: str
    type: str
    """In words, such as ``integer or null``."""
    meaning: str
    is_text: bool
    """Whether a value is text, alone or beside null."""


@functools.cache
def options_of(schema: type) -> tuple[Option, ...]:
    """All options of the dataclass ``schema``, nested ones as ``group.name``, in the order of their definition."""
    return tuple(_options(schema, ""))


def _options(schema: type, prefix: str) -> Iterator[Option]:
    hints, meanings = get_type_hints(schema), _meanings(schema)
    for field in fields(schema):
        name, hint = prefix + field.name, hints[field.name]
        optional, inner = _without_none(hint)
        if get_origin(inner) is dict and is_dataclass(value := get_args(inner)[1]):
            yield from _options(value, f"{name}.{ANY_NAME}.")  # type: ignore[arg-type]
        elif get_origin(inner) is dict and (of_key := get_args(inner)[1]) in _TYPES:
            yield Option(f"{name}.{ANY_NAME}", _type_text(of_key), meanings.get(field.name, ""), of_key is str)
        elif is_dataclass(inner):
            yield from _options(inner, f"{name}.")  # type: ignore[arg-type]
        else:
            text = _type_text(inner) + (" or null" if optional else "")
            yield Option(name, text, meanings.get(field.name, ""), inner is str)


def _without_none(hint: Any) -> tuple[bool, Any]:
    """Whether ``hint`` admits None, and what else it is."""
    if get_origin(hint) in (Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        return len(rest) < len(get_args(hint)), rest[0]
    return False, hint


def _type_text(hint: Any) -> str:
    if get_origin(hint) is list:
        return f"list of {_TYPES.get(get_args(hint)[0], 'mapping')}"
    return _TYPES.get(hint, "mapping")


def _meanings(schema: type) -> dict[str, str]:
    """The string below each field, those of base classes too, white space folded."""
    found: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not is_dataclass(owner):
            continue
        (definition,) = ast.parse(inspect.getsource(owner)).body
        assert isinstance(definition, ast.ClassDef)
        for statement, below in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = below.value if isinstance(below, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[statement.target.id] = " ".join(text.value.replace("``", "").split())
    return found


def help_text(intro: str, config_name: str, schema: type, values: Mapping[Any, Any], user_dir: Path | None) -> str:
    """The help page of the command with ``configs/<config_name>.yaml``.

    ``intro`` is its function's docstring; ``values`` are the composed options, nested.
    """
    parts = [inspect.cleandoc(intro).replace("``", "")]  # Python 3.13 has removed the indentation already
    groups = [_row(f"{group}=", " | ".join(choices(group, user_dir))) for group in groups_of(config_name)]
    if groups:
        parts.append("Groups of options and their choices:\n" + "\n".join(groups))
    rows: dict[str, str] = {}
    for option in options_of(schema):
        name, of_any, last = option.name.partition(f".{ANY_NAME}.")
        alike = [other for other in options_of(schema) if of_any and other.name.endswith(f".{last}")]
        if alike and alike[0].meaning == option.meaning and ANY_NAME not in alike[0].name:  # mix.NAME.path
            known = alike[0].name.removesuffix(last)
            rows[f"{name}.{ANY_NAME}.*"] = f"The options {known}* for another one, which you call {ANY_NAME}."
        else:
            rows[option.name] = _described(option, values)
    parts.append("Options [type, value]:\n" + "\n".join(_row(name, text) for name, text in rows.items()))
    flags = [
        _row("--cfg job", "Print all options with their values, and exit."),
        _row("--config-dir DIR", "A folder with recipe/NAME.yaml files of yours; also BERT_PRETRAIN_CONFIGS=DIR."),
    ]
    return "\n\n".join([*parts, "Flags:\n" + "\n".join(flags)])


def _described(option: Option, values: Mapping[Any, Any]) -> str:
    value: Any = values
    for part in option.name.split("."):
        value = value.get(part, "") if isinstance(value, Mapping) else ""
    shown = "required" if value == "???" else "null" if value is None else str(value)
    if isinstance(value, bool):
        shown = shown.lower()
    return f"[{option.type}{f', {shown}' if shown else ''}] {option.meaning}"


def _row(name: str, text: str) -> str:
    """A name and its text, which begins in the same column for all, below the name where that is long."""
    lines = textwrap.wrap(text, _WIDTH - _NAMES - 3, break_on_hyphens=False, break_long_words=False) or [""]
    first = f"  {name:<{_NAMES}} " if len(name) <= _NAMES else f"  {name}\n{'':<{_NAMES + 3}}"
    return first + f"\n{'':<{_NAMES + 3}}".join(lines)
