"""Rows of ``metrics.jsonl``: none is lost without a copy."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from bert_pretrain.training.metrics import REPLACED, MetricsLog, read_rows


def lines(*steps: int) -> str:
    return "".join(f'{{"step": {step}, "loss": {step}.25}}\n' for step in steps)


def resume(path: Path, step: int, capsys: pytest.CaptureFixture) -> str:
    log = MetricsLog(path, 10)
    log.resume(step)
    log.close()
    return capsys.readouterr().out


def test_rows_that_are_computed_again_are_copied_first(tmp_path: Path, capsys) -> None:
    path, copy = tmp_path / "metrics.jsonl", tmp_path / REPLACED
    path.write_text(lines(1, 2, 3, 4))
    assert resume(path, 2, capsys) == ""
    assert path.read_text() == lines(1, 2)
    assert copy.read_text() == lines(3, 4)
    path.write_text(lines(1, 2, 3))
    resume(path, 1, capsys)
    assert copy.read_text() == lines(3, 4) + lines(2, 3), "a second resume keeps the first copy"


def test_rows_of_a_full_disk_are_forgotten_where_they_are_computed_again(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 10)
    log.row({"step": 1})
    with monkeypatch.context() as full:
        full.setattr("builtins.open", Mock(side_effect=OSError(28, "No space left on device")))
        for step in (2, 3, 4):
            log.row({"step": step, "loss": "before"})
    log.resume(2)
    for step in (3, 4):
        log.row({"step": step, "loss": "again"})
    log.close()
    assert [(row["step"], row.get("loss")) for row in read_rows(path)] == [
        (1, None), (2, "before"), (3, "again"), (4, "again"),
    ]  # fmt: skip


def test_nothing_is_written_where_nothing_changes(tmp_path: Path, capsys) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(1, 2))
    before = path.stat()
    resume(path, 2, capsys)
    assert path.stat().st_ino == before.st_ino
    assert not (tmp_path / REPLACED).exists()


def test_a_line_that_a_kill_has_cut_off_is_copied_and_no_news(tmp_path: Path, capsys) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(1, 2) + '{"step": 3, "lo')
    assert resume(path, 3, capsys) == ""
    assert path.read_text() == lines(1, 2)
    assert (tmp_path / REPLACED).read_text() == '{"step": 3, "lo\n'


@pytest.mark.parametrize("damaged", [b'{"step": 2, "lo', b"\xff\xfe\x00", b"[1]", b'{"loss": 1}'])
def test_a_damaged_line_is_named_and_the_rows_after_it_are_kept(tmp_path: Path, capsys, damaged: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(1).encode() + damaged + b"\n" + lines(3, 4).encode())
    assert [row["step"] for row in read_rows(path)] == [1, 3, 4]
    assert f"{path} is damaged in line 2: moved to {REPLACED}, the other rows are kept" in resume(path, 4, capsys)
    assert path.read_text() == lines(1, 3, 4)
    assert (tmp_path / REPLACED).read_bytes() == damaged + b"\n"


def test_a_whole_last_row_without_its_end_of_line_is_a_row(tmp_path: Path, capsys) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(1, 2).rstrip("\n"))
    resume(path, 2, capsys)
    assert path.read_text() == lines(1, 2)


def test_metrics_behind_a_link_stay_there(tmp_path: Path, capsys) -> None:
    (tmp_path / "far.jsonl").write_text(lines(1, 2))
    path = tmp_path / "metrics.jsonl"
    path.symlink_to(tmp_path / "far.jsonl")
    resume(path, 1, capsys)
    assert path.is_symlink()
    assert (tmp_path / "far.jsonl").read_text() == lines(1)
    assert (tmp_path / REPLACED).read_text() == lines(2)
