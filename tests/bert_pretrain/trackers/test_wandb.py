"""wandb without a server: the state that a run ends in, and where a key is looked for."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("wandb")

from bert_pretrain.trackers.tracker import DIVERGED, FAILED, FINISHED, STOPPED, Ledger
from bert_pretrain.trackers.wandb import WandbRun, has_key


@pytest.mark.parametrize(
    ("state", "calls"), [(FINISHED, [0]), (FAILED, [1]), (DIVERGED, [1]), (STOPPED, ["preempting", 75])]
)
def test_a_run_is_closed_with_its_state(tmp_path: Path, state: str, calls: list[object]) -> None:
    found: list[object] = []
    run = SimpleNamespace(
        dir=str(tmp_path),
        offline=True,
        summary={},
        define_metric=lambda *_, **__: None,
        mark_preempting=lambda: found.append("preempting"),
        finish=lambda exit_code: found.append(exit_code),
    )
    WandbRun(run, Ledger(tmp_path / "ledger")).finish(state)
    assert found == calls
    assert run.summary == {"state": state}


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
