"""``out_dir`` of export: links, files, other folders. Nothing is lost that was not meant, nothing half is left."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from bert_pretrain.hub import export
from tests.conftest import assert_as_new_files
from tests.forked import Forked

RUN = Path(__file__).resolve().parents[2] / "fixtures/run_56623bf/run"


def exported(out_dir: Path, *words: str) -> int:
    """The exit status."""
    try:
        export.main([f"run_dir={RUN}", f"out_dir={out_dir}", *words])
    except SystemExit as exited:
        return int(str(exited.code))
    return 0


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without loading the model, which other tests do."""
    monkeypatch.setattr(export, "check_loads", lambda folder: None)


def test_a_link_is_replaced_and_what_it_points_to_stays(
    tmp_path: Path, checked: None, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "v3").mkdir()
    (tmp_path / "v3/config.json").write_text("{}")
    latest = tmp_path / "latest"
    latest.symlink_to("v3")
    assert exported(latest) == 2
    assert "is a link to v3; give another, or overwrite=true to replace the link" in capsys.readouterr().err
    assert exported(latest, "overwrite=true") == 0
    assert "was a link to v3, which is left as it is; the link is replaced" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "v3").iterdir()] == ["config.json"]
    assert latest.is_dir()
    assert not latest.is_symlink()
    assert (latest / "model.safetensors").exists()
    assert exported(latest, "overwrite=true") == 0  # a folder now
    assert {path.name for path in tmp_path.iterdir()} == {"v3", "latest"}


def test_the_files_have_the_mode_of_new_files(tmp_path: Path, checked: None) -> None:
    """Also those of a checkpoint that only its owner can read, as earlier versions wrote them."""
    shutil.copytree(RUN, tmp_path / "run")
    for path in (tmp_path / "run").rglob("*.safetensors"):
        path.chmod(0o600)
    export.main([f"run_dir={tmp_path / 'run'}", f"out_dir={tmp_path / 'out'}"])
    assert_as_new_files(tmp_path / "out")


def test_a_dangling_link_is_refused_then_replaced(tmp_path: Path, checked: None, capsys: pytest.CaptureFixture) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert exported(link) == 2
    assert "is a link to" in capsys.readouterr().err
    assert exported(link, "overwrite=true") == 0
    assert (link / "config.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"link"}


@pytest.mark.parametrize("overwrite", ["overwrite=true", "overwrite=false"])
def test_a_file_or_a_folder_of_others_is_refused(
    tmp_path: Path, checked: None, overwrite: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/notes").write_text("mine")
    (tmp_path / "to_home").symlink_to("home")
    (tmp_path / "to_nowhere").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    for name in ("file", "home", "to_home", "file/below", "to_nowhere/below"):
        assert exported(tmp_path / name, overwrite) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert shown.count("\n") == 1
        assert "overwrite=true to" not in shown or overwrite == "overwrite=false"
    assert sorted(tmp_path.rglob("*")) == before


def test_the_checkpoint_itself_is_not_replaced(tmp_path: Path, checked: None, capsys: pytest.CaptureFixture) -> None:
    """``out_dir`` is ``${run_dir}/model`` unless given, which in a checkpoint is its own model."""
    shutil.copytree(RUN, tmp_path / "run")
    checkpoint = next((tmp_path / "run/checkpoints").iterdir())
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    for out_dir in ("", f"out_dir={tmp_path}/run/checkpoints"):
        with pytest.raises(SystemExit):
            export.main([f"run_dir={checkpoint}", "overwrite=true", *([out_dir] if out_dir else [])])
        assert "would replace files of the checkpoint" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}


def test_a_failure_leaves_the_earlier_export_and_no_part_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("{}")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def copy_fails(*_: object, **__: object) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])

    for target, name, fails in ((export, "check_loads", full), (shutil, "copytree", copy_fails)):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, fails)
            assert exported(tmp_path / "out", "overwrite=true") == 2
        assert "No space left on device" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (tmp_path / "out/config.json").read_text() == "{}"


def test_sigterm_leaves_no_part(tmp_path: Path) -> None:
    """The model is on a slow disk: a named pipe that nobody writes to."""
    shutil.copytree(RUN, tmp_path / "run")
    os.mkfifo(tmp_path / "run/metrics_pipe")
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/metrics.jsonl").symlink_to("metrics_pipe")
    (tmp_path / "models").mkdir()
    run = Forked("bert_pretrain.hub.export", f"run_dir={tmp_path / 'run'}", f"out_dir={tmp_path / 'models/out'}")
    end = time.monotonic() + 120
    while not (tmp_path / "models/.out.partial/config.json").exists() and time.monotonic() < end:
        time.sleep(0.01)
    run.signal(0, signal.SIGTERM)
    assert run.wait().returncode == 128 + signal.SIGTERM
    assert not list((tmp_path / "models").iterdir())
