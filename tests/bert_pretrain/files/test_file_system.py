"""Files that are replaced at once, also through links; directories that are tried by writing."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bert_pretrain.errors import ConfigError, OutageError
from bert_pretrain.files.file_system import check_file_writable, open_to_umask, replace_file, require_writable


def test_a_file_is_flushed_before_it_gets_its_name_and_the_name_after(tmp_path: Path, monkeypatch) -> None:
    calls: list[tuple[str, bool]] = []
    path = tmp_path / "file"
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        is_directory = os.path.isdir(f"/proc/self/fd/{descriptor}")
        calls.append(("directory" if is_directory else "file", path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    replace_file(path, b"content")
    assert calls == [("file", False), ("directory", True)]
    assert path.read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_of_safetensors_get_the_mode_of_other_files(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
        open_to_umask(tmp_path)
    finally:
        os.umask(before)
    assert [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [("model.safetensors", mode)]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, there: bool) -> None:
    (tmp_path / "far").mkdir()
    path, target = tmp_path / "file", tmp_path / "far/other"
    path.symlink_to(target)
    if there:
        target.write_text("before")
    replace_file(path, b"after")
    assert path.is_symlink()
    assert target.read_bytes() == b"after"


def test_a_link_to_nowhere_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/nowhere/x")
    message = "is a link to /nowhere/x, which is not there"
    with pytest.raises(ConfigError, match=rf"out_dir .*link {message}"):
        require_writable(tmp_path / "link", "out_dir")
    with pytest.raises(ConfigError, match=message):
        check_file_writable(tmp_path / "link", "run_dir's")


def test_a_full_disk_is_found_by_writing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Path("/dev/full").open("wb"))  # noqa: SIM115
    with pytest.raises(ConfigError, match=r"out_dir .* cannot be written .*No space left.*; give another"):
        require_writable(tmp_path, "out_dir")


def test_an_outage_is_not_the_user_s_mistake(tmp_path: Path, monkeypatch) -> None:
    def fail(**_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(OutageError):
        require_writable(tmp_path, "out_dir")


def test_a_write_that_fails_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as write(2) does, which knows no name

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/file'"):
        replace_file(tmp_path / "file", b"content")
