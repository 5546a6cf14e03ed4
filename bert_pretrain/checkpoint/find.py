"""Finds checkpoints: those of a run, the newest valid one, the one that an option names. Needs no torch."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.file_system import write_json
from bert_pretrain.files.retry import retried

RECORD = "newest_checkpoint.json"
"""In ``run_dir``: the step of the newest checkpoint that the run has saved."""
_LISTINGS = 10
_NAME = re.compile(r"step_(\d{8})")

Report = Callable[[str], None]


def checkpoints_in(directory: Path) -> list[Path]:
    """All checkpoints in ``directory`` by step, damaged ones too."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(directory / name for name in names if _NAME.fullmatch(name))


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix("step_"))


def newest_valid(directory: Path, report: Report, while_waiting: Callable[[], None] = lambda: None) -> Path | None:
    """The newest undamaged checkpoint; ``report`` gets a message for each damaged one that is skipped.

    A run may save and remove checkpoints meanwhile: then they are listed again, up to ``_LISTINGS`` times in all.
    Outages are waited out, with ``while_waiting`` called before each pause. Raises ``OutageError`` after minutes, and
    ``ConfigError`` for a checkpoint that this user may not read.
    """

    def listed() -> list[Path]:
        return retried(lambda: checkpoints_in(directory), str(directory), report, while_waiting)

    found, told, again = listed(), set[Path](), _LISTINGS - 1
    left = list(found)
    while left:
        path = left.pop()
        fault = _fault(path, report, while_waiting)
        if fault is None:
            return path
        if again and (now := listed()) != found:  # it may be one that its run has just removed
            found, left, again = now, list(now), again - 1
        elif path not in told:
            report(f"checkpoint {path} is skipped: {fault}")
            told.add(path)
    return None


def _fault(path: Path, report: Report, while_waiting: Callable[[], None] = lambda: None) -> str | None:
    try:
        return retried(lambda: find_fault(path), f"checkpoint {path}", report, while_waiting)
    except OSError as error:  # no outage: a permission
        raise ConfigError(
            f"checkpoint {path} cannot be read ({error}), which does not mean that it is damaged; make it readable and "
            "run the same command again"
        ) from None


def newest_to_resume(
    directory: Path, record: Path | None, report: Report, while_waiting: Callable[[], None], trained: bool
) -> Path | None:
    """The checkpoint in ``directory`` from which a run goes on; None if it has saved none yet.

    ``record``: see ``RECORD``. ``trained``: other files show that it must have saved some. Raises ``ConfigError`` if it
    has saved, and none of its checkpoints is valid: a run must not begin again by itself.
    """
    messages: list[str] = []

    def tell(text: str) -> None:
        messages.append(text)
        report(text)

    newest = newest_valid(directory, tell, while_waiting)
    saved, there = saved_step(record), checkpoints_in(directory)
    if newest is not None:
        if saved is not None and saved > step_of(newest) and not any(step_of(path) >= saved for path in there):
            report(f"the checkpoint of step {saved}, the newest that was saved, is gone from {directory}")
        if record is not None and saved != step_of(newest):
            record_saved_step(record, step_of(newest))
        return newest
    if there:
        what = f"holds {len(there)} checkpoint{'s' * (len(there) > 1)}, and none is valid ({'; '.join(messages[-3:])})"
    elif saved is not None or trained or any(directory.glob("step_*")):
        of_step = f" up to step {saved}" if saved else ""
        what = f"holds no checkpoint, but this run has saved some{of_step}"
    else:
        return None
    raise ConfigError(
        f"{directory} {what}; put a copy of one back there to go on from it, or give another run_dir to begin again. "
        "Nothing was changed"
    )


def saved_step(record: Path | None) -> int | None:
    """The step of the newest checkpoint that a run has saved, by its record; 0 for a damaged record."""
    try:
        return None if record is None else int(json.loads(record.read_text(encoding="utf-8"))["step"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return 0


def record_saved_step(record: Path, step: int) -> None:
    """Note that the checkpoint of ``step`` is on disk."""
    write_json(record, {"step": step})


def resolve_checkpoint(path: Path, option: str, report: Report) -> Path:
    """The checkpoint that ``path``, the value of ``option``, names: itself, or the newest valid one of a run.

    ``report`` gets a message for each damaged one that is skipped. Raises ``ConfigError`` if there is none.
    """
    newest = newest_valid(path / "checkpoints", report)
    if newest is not None:
        return newest
    if damaged := checkpoints_in(path / "checkpoints"):
        names = ", ".join(checkpoint.name for checkpoint in damaged)
        raise ConfigError(f"{option} is {str(path)!r}, whose checkpoints are all damaged ({names}); give a copy of one")
    if not (path / "model").is_dir():
        raise ConfigError(
            f"{option} is {str(path)!r}, which is no checkpoint; give a run directory or one of its checkpoints/step_*"
        )
    fault = _fault(path, report)
    if fault is not None:
        raise ConfigError(f"{option} is {str(path)!r}, which is damaged: {fault}")
    return path
