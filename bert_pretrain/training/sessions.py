"""``sessions.jsonl`` of a run: a line for each start of its process, and one for each end but that by a kill.

The start tells where, when and with what the run was trained; ``bert-pretrain report`` reads it.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bert_pretrain.errors import DivergedError, on_one_line
from bert_pretrain.program import program_version
from bert_pretrain.trackers.tracker import DIVERGED, FAILED, STOPPED

SESSIONS = "sessions.jsonl"
METRICS = "metrics.jsonl"
Facts = dict[str, Any]


@contextmanager
def recorded_session(run_dir: Path, facts: Facts, report: Callable[[str], None]) -> Iterator[Facts]:
    """Write the start, and at the exit of the context the end. ``facts`` belong to the start: ``before`` is when the
    metrics were last written (``last_written``), where a session ended that was killed.

    The context sets ``how`` in what it is given to how it ended. A file that cannot be written is reported and stops
    nothing.
    """
    place = {"host": socket.gethostname(), "version": program_version()}
    _append(run_dir, {"event": "start", "time": time.time(), **place, **facts}, report)
    end: Facts = {"event": "end", "how": STOPPED}
    try:
        yield end
    except BaseException as error:
        end |= {"how": DIVERGED if isinstance(error, DivergedError) else FAILED, "reason": on_one_line(error)}
        raise
    finally:
        _append(run_dir, {**end, "time": time.time()}, report)


def last_written(run_dir: Path) -> float | None:
    """When the metrics were last written, in seconds since 1970; None if there are none."""
    metrics = run_dir / METRICS
    return metrics.stat().st_mtime if metrics.exists() else None


def _append(run_dir: Path, row: Facts, report: Callable[[str], None]) -> None:
    try:
        with open(run_dir / SESSIONS, "a+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            is_whole = file.read() in (b"", b"\n")  # a line that was cut off has no end
            file.write((b"" if is_whole else b"\n") + json.dumps(row).encode() + b"\n")
    except OSError as error:
        report(f"{run_dir / SESSIONS} cannot be written ({error}); training goes on")


def read_sessions(run_dir: Path) -> list[Facts]:
    """The sessions of a run, oldest first: what their start states, and ``ended`` (a time), ``how`` and ``reason``.

    A session without its end was killed, or still runs: ``how`` is empty, and ``ended`` is when the next one found
    the metrics last written, or None for the last one. Empty for a run of an earlier version.
    """
    path, found = run_dir / SESSIONS, list[Facts]()
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            event, moment = row["event"], float(row["time"])
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a kill or a full disk
        if event == "start":
            if found and not found[-1]["how"]:
                found[-1]["ended"] = max(found[-1]["time"], row.get("before") or 0.0)
            found.append({**row, "how": "", "reason": "", "ended": None})
        elif found:
            found[-1] |= {"how": str(row.get("how")), "reason": str(row.get("reason", "")), "ended": moment}
    return found
