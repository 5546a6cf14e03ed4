"""Finds checkpoints: those of a run, the newest valid one, the one that an option names. Needs no torch."""

import re
from collections.abc import Callable
from pathlib import Path

from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.errors import ConfigError

_NAME = re.compile(r"step_(\d{8})")


def checkpoints_in(directory: Path) -> list[Path]:
    """All checkpoints in ``directory`` by step, damaged ones too."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def newest_valid(directory: Path, report: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint; ``report`` gets a message for each damaged one that is skipped."""
    for path in reversed(checkpoints_in(directory)):
        fault = find_fault(path)
        if fault is None:
            return path
        report(f"checkpoint {path} is skipped: {fault}")
    return None


def resolve_checkpoint(path: Path, option: str, report: Callable[[str], None]) -> Path:
    """The checkpoint that ``path``, the value of ``option``, names: itself, or the newest valid one of a run.

    ``report`` gets a message for each damaged one that is skipped. Raises ``ConfigError`` if there is none.
    """
    newest = newest_valid(path / "checkpoints", report)
    if newest is not None:
        return newest
    if not (path / "model").is_dir():
        raise ConfigError(
            f"{option} is {str(path)!r}, which is no checkpoint; give a run directory or one of its checkpoints/step_*"
        )
    fault = find_fault(path)
    if fault is not None:
        raise ConfigError(f"{option} is {str(path)!r}, which is damaged: {fault}")
    return path
