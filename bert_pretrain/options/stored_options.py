"""Reads a run's ``config.yaml`` and ``progress.json``; refuses, by name, files of a later version and damaged ones."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bert_pretrain.errors import ConfigError, on_one_line

FORMAT_VERSION = 1
"""Of ``config.yaml`` and of checkpoints. It grows when this version's files would mislead an earlier version."""

_SECTIONS = ("model", "batch", "schedule", "checkpoint", "logging")
_SOURCE = "the config.yaml of one of the run's checkpoints"


def check_format(version: object, path: Path | str) -> None:
    """Raise ``ConfigError`` unless this version of the program reads ``version`` of the file ``path``."""
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ConfigError(
            f"{path} has format {version!r}, and this version of the program reads up to format {FORMAT_VERSION}: a "
            "later version wrote it; go on with that version"
        )


def parse_options(text: str, path: Path | str) -> dict[str, Any]:
    """The options in ``text``, the content of the ``config.yaml`` at ``path``. Raises ``ConfigError``."""
    try:
        options = OmegaConf.to_container(OmegaConf.create(text))
        if not isinstance(options, dict) or not options:
            raise ValueError("it holds no options")
    except (YAMLError, OmegaConfBaseException, ValueError, AttributeError, RecursionError) as error:
        raise damaged(path, error, _SOURCE) from None
    check_format(options.pop("format_version", 1), path)
    return {str(key): value for key, value in options.items()}


def read_options(path: Path) -> dict[str, Any]:
    """``parse_options`` of a file, which must be whole."""
    options = parse_options(read_text(path), path)
    missing = [name for name in _SECTIONS if not isinstance(options.get(name), dict)]
    if not missing and not isinstance(options["schedule"].get("total_steps"), int):
        missing = ["schedule.total_steps"]
    if missing:
        raise damaged(path, ValueError(f"it lacks {', '.join(missing)}"), _SOURCE)
    return options


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their full names, ``group.name``."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def read_text(path: Path) -> str:
    """The text of ``path``. Raises ``ConfigError`` if it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, error, "one that is whole") from None


def read_progress(path: Path) -> dict[str, Any]:
    """The content of a ``progress.json``. Raises ``ConfigError``."""
    try:
        values = json.loads(read_text(path))
        if not isinstance(values, dict) or not isinstance(values.get("step"), int):
            raise ValueError("it holds no step")
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise damaged(path, error, "one that is whole") from None
    check_format(values.pop("format_version", 1), path)
    return values


def damaged(path: Path | str, error: Exception, source: str) -> ConfigError:
    """The message about a file of a run, to be replaced by a copy of ``source``."""
    return ConfigError(f"{path} is damaged ({on_one_line(error)}); put a copy of {source} there")
