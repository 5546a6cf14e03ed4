"""Loss spikes, skipped steps, collapsed loss scales, and rewinds to a checkpoint."""

import random
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bert_pretrain.checkpoint.store import load_progress
from bert_pretrain.errors import ConfigError
from bert_pretrain.training.loss_spikes import LossSpikeDetector
from bert_pretrain.training.trainer import Trainer
from tests.bert_pretrain.training.test_trainer import rows, spoil, trainer_for
from tests.conftest import StopAfter

REWIND = ("numerics.on_spike=rewind", "schedule.total_steps=9")


def spikes(losses: list[float], deviations: float = 10.0) -> list[int]:
    detector = LossSpikeDetector()
    return [index for index, loss in enumerate(losses) if detector.note_applied(loss, deviations)]


def noisy(seed: int, count: int = 400) -> list[float]:
    rng = random.Random(seed)
    return [8.0 - 3.0 * min(1.0, step / 200) + rng.gauss(0.0, 0.05) for step in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_outliers_are_spikes_but_noise_and_descent_are_not(seed: int) -> None:
    losses = noisy(seed)
    assert spikes(losses) == []
    for index in (120, 121, 300):
        losses[index] += 2.0
    assert spikes(losses) == [120, 121, 300]


def test_a_lasting_change_becomes_the_new_normal() -> None:
    rng = random.Random(2)
    losses = noisy(1) + [9.0 + rng.gauss(0.0, 0.05) for _ in range(300)]
    found = spikes(losses)
    assert found[0] == 400
    assert max(found) < 550


def test_the_statistics_are_the_mean_and_the_mean_distance_of_neighbours() -> None:
    detector = LossSpikeDetector()
    for loss in (4.0, 2.0, 3.0):
        detector.note_applied(loss, 10.0)
    assert detector.mean == pytest.approx(3.0)
    assert detector.deviation == pytest.approx((0.0 + 2.0 + 1.0) / 3)
    assert LossSpikeDetector(**asdict(detector)) == detector


def test_a_collapsed_loss_scale_is_reported() -> None:
    detector = LossSpikeDetector()
    for step in range(25):
        detector.note_skipped(7, 65536.0 * 0.5**step, scaled=True, limit=100)
    with pytest.raises(ConfigError, match=r"the loss scale collapsed to 0.00195 after step 7: 26 steps in a row"):
        detector.note_skipped(7, 65536.0 * 0.5**25, scaled=True, limit=100)


def test_without_a_loss_scale_the_option_limits_skipped_steps() -> None:
    detector = LossSpikeDetector()
    for _ in range(4):
        detector.note_skipped(7, 1.0, scaled=False, limit=5)
    with pytest.raises(ConfigError, match=r"5 steps in a row had a gradient that is not finite, after step 7"):
        detector.note_skipped(7, 1.0, scaled=False, limit=5)


def test_the_limit_on_skipped_steps_is_an_option(tmp_path: Path, shard_dir: Path) -> None:
    trainer = trainer_for(tmp_path, shard_dir, "numerics.max_skipped_in_a_row=3")
    spoil(trainer, set(range(10**4)))
    with pytest.raises(ConfigError, match="3 steps in a row"):
        trainer.run()


def poison(monkeypatch: pytest.MonkeyPatch, attempts: set[int]) -> None:
    """Make the losses of these global batches spikes, in every trainer."""
    original = Trainer._finish_previous_step

    def finish_previous_step(trainer: Trainer) -> bool:
        detector = trainer.recovery.detector
        poisoned = bool(trainer._pending) and trainer.progress.attempts in attempts
        if poisoned:
            detector.seen, detector.mean, detector.deviation = 100, 0.0, 0.001
        applied = original(trainer)
        if poisoned:
            detector.seen = 0
        return applied

    monkeypatch.setattr(Trainer, "_finish_previous_step", finish_previous_step)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_a_rewind_equals_a_run_that_never_saw_the_samples(
    tmp_path: Path, shard_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints at 3 and 6; a spike in the fifth global batch: 3 and 4 are skipped, 5, 6, ... come instead."""
    expected = trainer_for(tmp_path / "expected", shard_dir, *REWIND)
    reference = trainer_for(tmp_path / "reference", shard_dir, "schedule.total_steps=9")
    poison(monkeypatch, {4})
    assert expected.run()
    assert expected.progress.passed_over == 2
    assert expected.progress.attempts == 11
    assert expected.progress.step == 9
    assert expected.progress.skipped == 0
    assert expected.progress.samples_seen == 9 * 12
    assert [row["step"] for row in rows(tmp_path / "expected") if "lr" in row] == list(range(1, 10))
    assert load_progress(expected.store.all()[-1]).passed_over == 2
    train_on(reference, [0, 1, 2, 5, 6, 7, 8, 9, 10])
    assert all(torch.equal(value, weights(expected)[name]) for name, value in weights(reference).items())


def train_on(trainer: Trainer, attempts: list[int]) -> None:
    """Single steps on these global batches."""
    for attempt in attempts:
        steps = trainer.data.steps(attempt)
        trainer.progress = type(trainer.progress)(step=0, attempts=attempt)
        trainer.train_step(next(steps))
        steps.close()


def test_a_run_killed_after_a_rewind_rewinds_again(
    tmp_path: Path, shard_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {4})
    whole = trainer_for(tmp_path / "whole", shard_dir, *REWIND)
    assert whole.run()
    first = trainer_for(tmp_path / "killed", shard_dir, *REWIND)
    steps_done = iter(range(100))

    def die(*_: object) -> None:
        if next(steps_done) == 7:  # after the rewind, before the next checkpoint
            raise KeyboardInterrupt

    first.optimizer.register_step_pre_hook(die)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    first._writer.wait()
    again = trainer_for(tmp_path / "killed", shard_dir, *REWIND)
    assert again.progress.step == 3
    assert again.run()
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())
    kept = ("step", "loss", "eval_loss", "lr", "grad_norm", "samples_seen")
    pairs = zip(rows(tmp_path / "whole"), rows(tmp_path / "killed"), strict=True)
    assert all(one.get(key) == other.get(key) for one, other in pairs for key in kept)


def test_a_run_stopped_after_a_rewind_to_an_older_checkpoint_is_saved(
    tmp_path: Path, shard_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint 6 is damaged when a spike in the eighth global batch sends the run back to 3; it is stopped at 5."""
    poison(monkeypatch, {7})
    trainer = trainer_for(tmp_path, shard_dir, *REWIND)
    updates = iter(range(1, 100))

    def disturb(*_: object) -> None:
        update = next(updates)
        if update == 8:
            trainer._writer.wait()
            (trainer.store.all()[-1] / "optimizer.pt").write_bytes(b"damaged")
        elif update == 10:  # the spike was seen after the ninth
            trainer.stop = StopAfter(1)

    trainer.optimizer.register_step_pre_hook(disturb)
    assert not trainer.run()
    assert 3 < trainer.progress.step < 6
    assert trainer.progress.passed_over > 0
    assert load_progress(trainer.store.directory / f"step_{trainer.progress.step:08d}").step == trainer.progress.step


def test_spikes_after_every_rewind_end_the_run_with_a_diagnosis(
    tmp_path: Path, shard_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(4, 1000)))
    with pytest.raises(ConfigError, match=r"each of 3 rewinds"):
        trainer_for(tmp_path, shard_dir, *REWIND).run()


def test_before_the_first_checkpoint_and_by_default_a_spike_is_only_reported(
    tmp_path: Path, shard_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    poison(monkeypatch, {1, 4})
    trainer = trainer_for(tmp_path, shard_dir)
    assert trainer.run()
    assert trainer.progress.passed_over == 0
    out = capsys.readouterr().out
    assert "step 2: loss" in out
    assert "step 5: loss" in out
    assert [row["loss_spikes"] for row in rows(tmp_path) if "lr" in row] == [0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("policy", ["continue", "rewind"])
def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path, shard_dir: Path, policy: str) -> None:
    """It appears before the fourth step: the run fails, or rewinds to the third."""
    trainer = trainer_for(tmp_path, shard_dir, f"numerics.on_spike={policy}", "schedule.total_steps=6")
    seen = iter(range(100))

    def spoil_moment(*_: object) -> None:
        if next(seen) == 3:
            state = next(iter(trainer.optimizer.state.values()))
            next(value for value in state.values() if value.ndim)[0] = float("nan")

    trainer.optimizer.register_step_pre_hook(spoil_moment)
    if policy == "continue":
        with pytest.raises(ConfigError, match="after step 4 a weight or moment is not finite"):
            trainer.run()
        trainer._writer.wait()  # as at the exit of the process
        assert [path.name for path in trainer.store.all()] == ["step_00000003"]
    else:
        assert trainer.run()
        assert trainer.progress.passed_over == 1
        assert all(value.isfinite().all() for value in weights(trainer).values())


@pytest.mark.parametrize("attempt", [4, 5])
def test_without_a_checkpoint_to_rewind_to_every_step_counts(
    tmp_path: Path, shard_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, attempt: int
) -> None:
    """The checkpoint is gone when a spike comes: the run goes on as one that does not rewind, boundaries too."""
    poison(monkeypatch, {attempt})
    whole = trainer_for(tmp_path / "whole", shard_dir, "schedule.total_steps=9")
    assert whole.run()
    trainer = trainer_for(tmp_path / "gone", shard_dir, *REWIND)
    seen = iter(range(100))

    def remove(*_: object) -> None:
        if next(seen) == attempt:
            trainer._writer.join()
            shutil.rmtree(trainer.store.directory)

    trainer.optimizer.register_step_pre_hook(remove)
    assert trainer.run()
    assert trainer.progress == whole.progress
    assert trainer.applied.tolist() == [9]
    assert all(torch.equal(value, weights(trainer)[name]) for name, value in weights(whole).items())
    assert [row["step"] for row in rows(tmp_path / "gone")] == [row["step"] for row in rows(tmp_path / "whole")]
    assert [load_progress(path).step for path in trainer.store.all()] == [6, 9]
    assert "there is no checkpoint to rewind to" in capsys.readouterr().out
