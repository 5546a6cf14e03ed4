"""Checkpoints that are gone, damaged, elsewhere or behind links: no run begins again by itself, no save is lost."""

import json
import re
import shutil
from pathlib import Path

import pytest

from bert_pretrain.checkpoint.find import RECORD
from bert_pretrain.training.metrics import REPLACED
from tests.conftest import TEST_RECIPE, succeed
from tests.integration.test_bad_input import refused

SHORT = ("checkpoint.every_steps=1", "schedule.total_steps=6", "training.evaluate_every_steps=6")


def words(run_dir: Path, shard_dir: Path, *changes: str) -> list[str]:
    return [*TEST_RECIPE, f"data.dir={shard_dir}", f"run_dir={run_dir}", *SHORT, *changes]


def train(*options: str) -> str:
    return succeed("bert_pretrain.pretrain", *options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shard_dir: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train(*words(run_dir, shard_dir))
    return run_dir


def test_a_save_longer_than_the_timeout_of_the_watchdog_ends_no_run(tmp_path: Path, shard_dir: Path) -> None:
    """Rank 0 waits for its disk, rank 1 for rank 0: 10 seconds of silence would be a stuck rank."""
    options = words(tmp_path, shard_dir, "schedule.total_steps=2", "communication.timeout_seconds=15")
    out = succeed("tests.integration.slow_save", "22", *options, processes=2)
    assert re.search(r"rank 0 on \S+: (saving a|writing the last) checkpoint, for \d+ s so far", out)
    assert (tmp_path / "checkpoints/step_00000002/checksums.json").is_file()


@pytest.mark.parametrize("name", ["plots", "report.html"])
def test_a_finished_run_has_finished_without_its_report(
    tmp_path: Path, shard_dir: Path, finished: Path, name: str
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    if name == "plots":
        shutil.rmtree(run_dir / name)
        (run_dir / name).touch()
    else:
        (run_dir / name).unlink()
        (run_dir / name).mkdir()
    last = train(*words(run_dir, shard_dir)).splitlines()[-1]
    assert last.startswith(f"finished: checkpoints in {run_dir}/checkpoints; no report (")
    assert f"bert-pretrain report run_dir={run_dir}" in last


@pytest.mark.parametrize("report", [True, False])
def test_a_run_whose_record_is_gone_too_does_not_begin_again(
    tmp_path: Path, shard_dir: Path, finished: Path, report: bool
) -> None:
    """An unfinished one has no report; its metrics reach further than it goes without a save."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / RECORD).unlink()
    if not report:
        (run_dir / "report.html").unlink()
    refused(
        "bert_pretrain.pretrain", *words(run_dir, shard_dir), mentions="holds no checkpoint, but this run has saved"
    )


@pytest.mark.parametrize("version", ["this", "earlier"])
def test_a_run_without_its_checkpoints_does_not_begin_again(
    tmp_path: Path, shard_dir: Path, finished: Path, version: str
) -> None:
    """An earlier version kept no record: its metrics tell."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    if version == "earlier":
        (run_dir / RECORD).unlink()
        stored = (run_dir / "config.yaml").read_text()
        (run_dir / "config.yaml").write_text(stored.replace("format_version: 1\n", ""))
    before = (run_dir / "metrics.jsonl").read_bytes()
    refused(
        "bert_pretrain.pretrain", *words(run_dir, shard_dir), mentions="holds no checkpoint, but this run has saved"
    )
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    shutil.copytree(finished / "checkpoints", run_dir / "checkpoints")
    assert "resuming from" in train(*words(run_dir, shard_dir))


def test_two_ranks_refuse_damaged_checkpoints_with_one_message(tmp_path: Path, shard_dir: Path, finished: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    for path in run_dir.glob("checkpoints/*/optimizer.pt"):
        path.write_bytes(b"")
    found = sorted(run_dir.rglob("*"))
    error = refused("bert_pretrain.pretrain", *words(run_dir, shard_dir), mentions="none is valid", ranks=2)
    assert "give another run_dir" in error
    assert sorted(path for path in run_dir.rglob("*") if path.name != ".lock") == found


def test_a_run_killed_before_its_first_checkpoint_begins_again_and_keeps_its_rows(
    tmp_path: Path, shard_dir: Path, finished: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    shutil.copyfile(finished / "config.yaml", run_dir / "config.yaml")
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "loss": 4.5}\n')
    (run_dir / "checkpoints/.step_00000001.partial").mkdir(parents=True)
    out = train(*words(run_dir, shard_dir))
    assert f"{run_dir} has metrics up to step 1 and no checkpoint: the run begins again" in out
    assert json.loads((run_dir / REPLACED).read_text()) == {"step": 1, "loss": 4.5}
    assert json.loads((run_dir / RECORD).read_text()) == {"step": 6}


def test_checkpoints_on_another_disk_and_links_in_it(tmp_path: Path, shard_dir: Path) -> None:
    """The folder is a link made beforehand; an old checkpoint is moved away later, a link in its place."""
    run_dir, far = tmp_path / "run", tmp_path / "far"
    run_dir.mkdir()
    far.mkdir()
    (run_dir / "checkpoints").symlink_to(far)
    (run_dir / "metrics.jsonl").symlink_to(tmp_path / "rows.jsonl")
    train(*words(run_dir, shard_dir, "schedule.warmup_steps=0", "schedule.shape=constant", "schedule.total_steps=2"))
    first = far / "step_00000001"
    first.rename(tmp_path / "moved")
    first.symlink_to(tmp_path / "moved")
    out = train(*words(run_dir, shard_dir, "schedule.warmup_steps=0", "schedule.shape=constant"))
    assert "could not be written" not in out
    assert f"step_00000001 was a link: it is removed, and {tmp_path / 'moved'} is kept" in out
    assert sorted(path.name for path in far.iterdir()) == ["step_00000004", "step_00000005", "step_00000006"]
    assert (tmp_path / "moved/optimizer.pt").is_file()
    assert (run_dir / "metrics.jsonl").is_symlink()
    assert '"step": 6' in (tmp_path / "rows.jsonl").read_text()


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "config.yaml"])
def test_a_link_to_nowhere_is_found_at_the_start(tmp_path: Path, shard_dir: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/nowhere/x")
    error = refused("bert_pretrain.pretrain", *words(tmp_path, shard_dir), mentions="is a link to /nowhere/x")
    assert f"{tmp_path}/{name}" in error


def test_a_file_in_the_place_of_the_checkpoints_is_found_at_the_start(tmp_path: Path, shard_dir: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    refused("bert_pretrain.pretrain", *words(tmp_path, shard_dir), mentions="checkpoints is a file")


def test_folders_of_shards_behind_links_to_nowhere_are_told_as_such(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    told = f"{link} is a link to {tmp_path}/nowhere, which is not there"
    refused("bert_pretrain.pretrain", *words(tmp_path / "run", link), mentions=f"data.dir {told}")
    refused("data_prep.prepare", f"out_dir={link}", "corpus=embedded", mentions=f"out_dir {told}")
