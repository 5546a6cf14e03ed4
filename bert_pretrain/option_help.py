"""The help of a command: what it does, the choices of its groups, and each of its options."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_pretrain.config_files import choices, groups_of
from bert_pretrain.option_schema import Option, options_of

_WIDTH = 110
_NAMES = 32  # columns for the names of options


def help_text(intro: str, config_name: str, schema: type, values: Mapping[Any, Any], user_dir: Path | None) -> str:
    """The help page of the command with ``configs/<config_name>.yaml``.

    ``intro`` is its function's docstring; ``values`` are the composed options, nested.
    """
    lines = intro.strip().splitlines()
    parts = ["\n".join(line.removeprefix("    ") for line in lines).replace("``", "")]
    groups = [_row(f"{group}=", " | ".join(choices(group, user_dir))) for group in groups_of(config_name)]
    if groups:
        parts.append("Groups of options and their choices:\n" + "\n".join(groups))
    rows = [_row(option.name, _described(option, values)) for option in options_of(schema)]
    parts.append("Options [type, value]:\n" + "\n".join(rows))
    flags = [
        _row("--cfg job", "Print all options with their values, and exit."),
        _row("--config-dir DIR", "A folder with recipe/NAME.yaml files of yours; also BERT_PRETRAIN_CONFIGS=DIR."),
    ]
    return "\n\n".join([*parts, "Flags:\n" + "\n".join(flags)])


def _described(option: Option, values: Mapping[Any, Any]) -> str:
    value: Any = values
    for part in option.name.split("."):
        value = value.get(part, "") if isinstance(value, Mapping) else ""
    shown = {True: "true", False: "false", None: "null", "???": "required"}.get(
        value if isinstance(value, bool | str | None) else "", str(value)
    )
    return f"[{option.type}{f', {shown}' if shown else ''}] {option.meaning}"


def _row(name: str, text: str) -> str:
    """A name and its text, which begins in the same column for all, below the name where that is long."""
    lines = textwrap.wrap(text, _WIDTH - _NAMES - 3, break_on_hyphens=False, break_long_words=False) or [""]
    first = f"  {name:<{_NAMES}} " if len(name) <= _NAMES else f"  {name}\n{'':<{_NAMES + 3}}"
    return first + f"\n{'':<{_NAMES + 3}}".join(lines)
