"""Fine-tuning that is stopped, killed, run again: the same numbers, bit for bit; nothing of other options is mixed."""

import errno
import json
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.errors import EXIT_STOPPED, ConfigError
from bert_pretrain.files.directory_lock import LOCK
from bert_pretrain.finetune.run import finetune
from bert_pretrain.training.metrics import LineTimer
from tests.bert_pretrain.finetune.test_tasks import composed
from tests.conftest import StopAfter
from tests.forked import Forked
from tests.integration.test_finetune import ALONE, FAST, model_dir, sst2  # noqa: F401  (fixtures)

# 9 steps an epoch, 3 batches to evaluate.
SHORT = ("training.epochs=2", "training.eval_batch_size=8", "training.micro_batch_size=4", "save_models=true")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, sst2: Path) -> tuple[str, ...]:  # noqa: F811
    """Of a model with dropout, whose random states matter."""
    folder = tmp_path_factory.mktemp("dropout") / "model"
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    (folder / "config.json").write_text(json.dumps(config))
    return (*FAST, *SHORT, f"model_dir={folder}", f"data.dir={sst2}")


def run(options: tuple[str, ...], out_dir: Path, *more: str, stop: StopRequest | None = None) -> bool:
    return finetune(composed("sst2", *options, f"out_dir={out_dir}", *more), ALONE, stop or StopRequest())


def kept(out_dir: Path, seed: int = 1) -> tuple[dict, bytes, bytes]:
    """The result without its time, predictions, weights."""
    folder = out_dir / f"seed_{seed}"
    row = json.loads((folder / "result.json").read_text())
    assert row.pop("seconds") > 0
    assert not (folder / "checkpoints").exists()
    return row, (folder / "dev/SST-2.tsv").read_bytes(), (folder / "model/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]) -> Path:
    """A run of two seeds that nobody stopped."""
    out_dir = tmp_path_factory.mktemp("whole")
    assert run(options, out_dir)
    return out_dir


@pytest.mark.parametrize("count", [5, 9])
def test_a_run_that_is_stopped_again_and_again_gives_the_same_bits(
    tmp_path: Path, options: tuple[str, ...], whole: Path, count: int, capsys: pytest.CaptureFixture
) -> None:
    """Within epochs and within the evaluation (5), at the ends of epochs and of the training (9)."""
    starts = 1
    while not run(options, tmp_path, "seeds=[1]", stop=StopAfter(count)):
        assert len(list((tmp_path / "seed_1/checkpoints").iterdir())) == 1
        assert not (tmp_path / "seed_1/result.json").exists()
        starts += 1
    assert starts == {5: 5, 9: 3}[count]
    assert f"stopped on request in seed 1 after step {count}; run the same command to go on" in capsys.readouterr().out
    assert kept(tmp_path) == kept(whole)
    assert not (tmp_path / LOCK).exists()


def test_seeds_that_are_missing_are_run_and_the_others_kept(
    tmp_path: Path, options: tuple[str, ...], whole: Path, capsys: pytest.CaptureFixture
) -> None:
    assert not run(options, tmp_path, stop=StopAfter(18 + 3 + 4))
    first = (tmp_path / "seed_1/result.json").stat()
    assert kept(tmp_path) == kept(whole)
    assert not (tmp_path / "results.json").exists()
    assert run(options, tmp_path)
    assert (tmp_path / "seed_1/result.json").stat().st_mtime_ns == first.st_mtime_ns
    assert "finished before: seed 1\n" in capsys.readouterr().out
    assert kept(tmp_path, 2) == kept(whole, 2)
    assert run(options, tmp_path, "seeds=[2,1,3]", stop=None)
    assert [row["seed"] for row in json.loads((tmp_path / "results.json").read_text())["runs"]] == [2, 1, 3]
    assert run(options, tmp_path, "seeds=[2,1,3]", stop=StopAfter(1))  # nothing is left to stop


def test_other_options_data_or_weights_are_refused_by_name(
    tmp_path: Path,
    options: tuple[str, ...],
    sst2: Path,  # noqa: F811
) -> None:
    changed, model = tmp_path / "data", tmp_path / "model"
    shutil.copytree(sst2, changed)
    shutil.copytree(next(word for word in options if word.startswith("model_dir=")).partition("=")[2], model)
    options = (*options, f"data.dir={changed}", f"model_dir={model}", "seeds=[1]")
    out_dir = tmp_path / "out"
    assert not run(options, out_dir, stop=StopAfter(2))
    with pytest.raises(ConfigError, match=r"other options: training.lr was 0.01 and is 0.02; .* overwrite=true"):
        run(options, out_dir, "training.lr=0.02")
    moved = tmp_path / "moved"
    changed.rename(moved)
    assert not run(options, out_dir, f"data.dir={moved}", stop=StopAfter(2))
    with open(moved / "dev.tsv", "a") as file:
        file.write("a who\t1\n")
    with pytest.raises(ConfigError, match=r"the content of the dev set has changed"):
        run(options, out_dir, f"data.dir={moved}")
    assert list((out_dir / "seed_1/checkpoints").iterdir())
    assert run(options, out_dir, f"data.dir={moved}", "overwrite=true", "training.lr=0.02", "training.epochs=1")
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][7, 7] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"the content of model_dir has changed"):
        run(options, out_dir, f"data.dir={moved}", "training.lr=0.02", "training.epochs=1")


def test_overwrite_follows_a_link_and_removes_only_what_is_its_own(tmp_path: Path, options: tuple[str, ...]) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    target.mkdir()
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(target)
    (target / "seed_2").symlink_to(elsewhere)
    for path in (target / "results.json", target / "notes.txt", elsewhere / "precious"):
        path.write_text("{}")
    largest = 2**32 - 1  # that numpy's generators take
    assert run(options, tmp_path / "link", "overwrite=true", f"seeds=[{largest}]", "training.epochs=0.1")
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in target.iterdir()} == {
        "notes.txt",
        "options.json",
        "results.json",
        f"seed_{largest}",
    }
    assert (elsewhere / "precious").read_text() == "{}"


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_an_out_dir_that_is_no_directory_is_refused(tmp_path: Path, options: tuple[str, ...], kind: str) -> None:
    out_dir = tmp_path / "out"
    out_dir.write_text("mine") if kind == "file" else out_dir.symlink_to("nowhere")
    found = {"file": "a file", "dangling": "a link to nowhere, which is not there"}[kind]
    with pytest.raises(ConfigError, match=rf"out_dir .* is {found}"):
        run(options, out_dir, "overwrite=true")


def _wait_for(path: Path, pattern: str, run: Forked) -> None:
    while not any(path.glob(pattern)):
        assert run.is_running(), run.stderr
        time.sleep(0.005)


@pytest.mark.parametrize(("ranks", "number"), [(0, signal.SIGKILL), (2, signal.SIGTERM)])
def test_a_killed_run_and_a_stopped_one_of_two_ranks_go_on(
    tmp_path: Path, options: tuple[str, ...], ranks: int, number: signal.Signals
) -> None:
    """SIGTERM reaches one rank of two; both stop after the same step. Meanwhile nobody else writes into out_dir."""
    options = (*options, "training.epochs=3", "seeds=[1]", "training.checkpoint_minutes=0")
    command = ("bert_pretrain.finetune", "task=sst2", *options)
    assert Forked(*command, f"out_dir={tmp_path / 'whole'}", ranks=ranks).wait().returncode == 0
    started = Forked(*command, f"out_dir={tmp_path / 'out'}", ranks=ranks)
    _wait_for(tmp_path / "out", "seed_1/checkpoints/step_0000000[2-9]", started)
    with pytest.raises(ConfigError, match=r"out_dir .* is in use by process \d+"):
        run(options, tmp_path / "out", "overwrite=true")
    started.signal(max(0, ranks - 1), number)
    done = started.wait(terminate=False)
    assert started.statuses == ([EXIT_STOPPED] * 2 if ranks else [-number]), done.stderr
    assert done.stdout.count("stopped on request in seed 1 after step ") == (ranks > 0)
    assert not (tmp_path / "out/results.json").exists()
    again = Forked(*command, f"out_dir={tmp_path / 'out'}", ranks=ranks).wait()
    assert again.returncode == 0, again.stderr
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")


def test_a_checkpoint_that_cannot_be_written_or_read_is_said(
    tmp_path: Path,
    options: tuple[str, ...],
    whole: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocked = tmp_path / "seed_1/checkpoints/step_00000002"
    assert not run(options, tmp_path, "seeds=[1]", stop=StopAfter(2))
    weights = blocked / "optimizer.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"checkpoint .*step_00000002 cannot be loaded .* move the checkpoint away"):
        run(options, tmp_path, "seeds=[1]")
    shutil.rmtree(blocked)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert not run(options, tmp_path, "seeds=[1]", stop=StopAfter(3))
    assert "seed 1 (1 of 1)  no checkpoint at step 3 ([Errno 28] No space left" in capsys.readouterr().out
    assert not list((tmp_path / "seed_1/checkpoints").iterdir())
    assert run(options, tmp_path, "seeds=[1]")
    assert kept(tmp_path) == kept(whole)


def test_progress_lines_come_often_at_first_then_sparsely() -> None:
    now = 100.0
    timer = LineTimer(lambda: now)
    due = []
    while now < 100 + 3600:
        now += 1.0
        if timer.due():
            due.append(now - 100)
    assert due[:5] == [5, 10, 15, 20, 25]
    assert len(due) < 45
    assert max(after - before for before, after in pairwise(due)) == 300
