"""The record of a run's starts and ends."""

import json
from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError, DivergedError
from bert_pretrain.program import program_version
from bert_pretrain.trackers.tracker import FINISHED
from bert_pretrain.training.sessions import SESSIONS, read_sessions, recorded_session


def session(run_dir: Path, fault: BaseException | None = None, **facts: object) -> None:
    with recorded_session(run_dir, facts, print) as end:
        if fault is not None:
            raise fault
        end["how"] = FINISHED


def test_every_end_is_told(tmp_path: Path) -> None:
    session(tmp_path, step=0)
    for fault in (DivergedError("the loss is nan\nand more"), ConfigError("no disk"), KeyboardInterrupt()):
        with pytest.raises(type(fault)):
            session(tmp_path, fault, step=3)
    found = read_sessions(tmp_path)
    assert [(one["how"], one["reason"], one["step"]) for one in found] == [
        ("finished", "", 0), ("diverged", "the loss is nan and more", 3), ("failed", "no disk", 3),
        ("failed", "KeyboardInterrupt", 3),
    ]  # fmt: skip
    assert all(one["ended"] >= one["time"] and one["version"] == program_version() for one in found)


def test_a_line_that_a_kill_cut_off_is_passed_over(tmp_path: Path) -> None:
    session(tmp_path, step=0)
    with open(tmp_path / SESSIONS, "a") as file:
        file.write('{"event": "sta')
    session(tmp_path, step=5)
    assert [one["step"] for one in read_sessions(tmp_path)] == [0, 5]
    assert json.loads((tmp_path / SESSIONS).read_text().splitlines()[-1])["event"] == "end"


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys) -> None:
    (tmp_path / SESSIONS).mkdir()
    session(tmp_path, step=0)
    assert capsys.readouterr().out.count("training goes on") == 2


def test_the_version_is_the_commit_of_this_checkout() -> None:
    assert program_version().removesuffix("-dirty").isalnum()
