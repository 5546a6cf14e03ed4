"""wandb offline, with the real library: one id a run directory, and the state that a run ends in."""

from pathlib import Path

import pytest

from bert_pretrain.training.wandb_run import WandbRun, has_key, open_wandb, run_id


class Run:
    def __init__(self) -> None:
        self.calls: list[object] = []

    def mark_preempting(self) -> None:
        self.calls.append("preempting")

    def finish(self, exit_code: int) -> None:
        self.calls.append(exit_code)


@pytest.mark.parametrize(("status", "calls"), [(0, [0]), (1, [1]), (75, ["preempting", 75])])
def test_a_run_is_closed_with_the_status_of_its_process(status: int, calls: list[object]) -> None:
    run = Run()
    WandbRun(run, pytest.fail).close(status)
    assert run.calls == calls


def test_runs_of_one_name_have_different_ids_and_keep_them(tmp_path: Path) -> None:
    folders = [tmp_path / place / "demo" for place in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    ids = [run_id(folder) for folder in folders]
    assert ids[0] != ids[1]
    assert [run_id(folder) for folder in folders] == ids
    moved = folders[0].rename(tmp_path / "moved")
    assert run_id(moved) == ids[0]


def test_a_run_of_an_earlier_version_keeps_its_name_as_id(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    assert run_id(tmp_path) == tmp_path.name


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("", False),
        ("machine github.com login me password x\n", False),
        ("machine api.wandb.ai login user password x\n", True),
        ("nonsense", False),
    ],
)
def test_only_a_key_for_wandb_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: str, expected: bool
) -> None:
    (tmp_path / ".netrc").write_text(entries)
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    assert has_key() == expected
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert has_key()


def test_rows_go_to_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = open_wandb("offline", "project", tmp_path, {"seed": 1}, pytest.fail)
    assert run is not None
    run.log({"step": 1, "loss": 2.0})
    run.close(75)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
