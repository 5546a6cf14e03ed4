"""The training loop: skipped steps, boundaries, stop requests, rows, and no waiting for the device."""

import errno
import json
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from bert_pretrain import build, starting
from bert_pretrain.build import build_trainer
from bert_pretrain.checkpoint import files
from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.store import CheckpointStore, load_progress
from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.data import batch_plan
from bert_pretrain.data.collate import StepBatch
from bert_pretrain.data.shards import ShardReader
from bert_pretrain.distributed.world import World, open_world
from bert_pretrain.errors import ConfigError, DivergedError
from bert_pretrain.files import retry
from bert_pretrain.optim import NVLamb
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.training.metrics import MetricsLog
from bert_pretrain.training.trainer import Trainer
from tests.conftest import TEST_RECIPE


def trainer_for(tmp_path: Path, shard_dir: Path, *overrides: str, device: str = "cpu") -> Trainer:
    options = [*TEST_RECIPE, f"data.dir={shard_dir}", f"run_dir={tmp_path}"]
    kept = [option for option in options if option.split("=")[0] not in {o.split("=")[0] for o in overrides}]
    config = load_config("pretrain", [*kept, *overrides], PretrainConfig)
    tmp_path.mkdir(exist_ok=True)
    log = MetricsLog(tmp_path / "metrics.jsonl", config.schedule.total_steps)
    text = resolved_yaml(config)
    with open_world(device) as world:
        trainer = build_trainer(config, world, log, CheckpointStore(tmp_path / "checkpoints", 9, None), text)
    log.resume(trainer.progress.step)
    return trainer


def rows(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def spoil(trainer: Trainer, attempts: set[int]) -> None:
    """Put a NaN into the gradient of these global batches."""
    seen = iter(range(10**6))

    def hook(*_: object) -> None:
        if next(seen) in attempts:
            next(trainer.model.parameters()).grad[0, 0] = float("nan")

    trainer.optimizer.register_step_pre_hook(hook)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shard_dir: Path) -> Trainer:
    """A run that nothing interrupted; read-only by agreement."""
    trainer = trainer_for(tmp_path_factory.mktemp("whole"), shard_dir)
    assert trainer.run()
    return trainer


def assert_same_run(found: Trainer, expected: Trainer) -> None:
    """The same weights, and the same rows but for times, bit for bit."""
    for name, value in expected.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name]), name
    kept = ("step", "loss", "eval_loss", "lr", "grad_norm")
    folders = (trainer.store.directory.parent for trainer in (found, expected))
    first, second = ([[row.get(key) for key in kept] for row in rows(folder)] for folder in folders)
    assert first == second


class Casts(TorchDispatchMode):
    """Counts casts from float32 to bf16, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16
        filled = func is torch.ops.aten.copy_.default and args[0].dtype == torch.bfloat16 != args[1].dtype
        if made or filled:
            self.shapes[tuple(args[-1].shape)] += 1
        return func(*args, **(kwargs or {}))


class NoSynchronization(TorchDispatchMode):
    """Fails if the host would wait for a device: if it reads a value, or a shape depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        reads = name in {"_local_scalar_dense", "equal", "is_nonzero"}
        reads = reads or torch.Tag.dynamic_output_shape in func.tags
        assert not reads, f"the host waits at {name}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("option", ["model.attention=eager", "model.attention=sdpa", "speed.last_layer_rows=false"])
def test_a_micro_batch_does_not_synchronize(tmp_path: Path, shard_dir: Path, option: str) -> None:
    """Forward, backward and sums; without fast_dropout, which draws its key on the host."""
    options = ("speed.fast_dropout=false", "speed.pad_vocabulary=true", "model.hidden_dropout_prob=0.1", option)
    trainer = trainer_for(tmp_path, shard_dir, *options)
    steps = trainer.data.steps(0)
    batch = next(steps)
    counts = trainer._global_counts(batch.counts)
    with NoSynchronization():
        sums = trainer._accumulate(batch, counts)
    steps.close()
    assert sums[0] > 0
    with pytest.raises(AssertionError, match="the host waits"), NoSynchronization():
        bool(sums[0] > 0)
    with pytest.raises(AssertionError, match="the host waits"), NoSynchronization():
        sums[sums > 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_a_step_on_the_gpu_does_not_synchronize(tmp_path: Path, shard_dir: Path, compiled: str) -> None:
    """After two steps that create what is created once; CUDA itself reports a synchronisation."""
    trainer = trainer_for(tmp_path, shard_dir, f"speed.compile={compiled}", device="cuda")
    steps = trainer.data.steps(0, pin=True)
    for _ in range(2):
        trainer.train_step(next(steps))
    batch = next(steps)
    ready = StepBatch(batch.counts, iter(list(batch.micro_batches)))
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(ready)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        steps.close()


@pytest.mark.parametrize("joined", ["true", "false"])
def test_weights_are_cast_once_a_step(tmp_path: Path, shard_dir: Path, joined: str) -> None:
    """Three micro-batches a step. The decoder is (97, 16), the feed-forward layers are (32, 16) and (16, 32)."""
    options = f"speed.fused_qkv={joined}", f"speed.pad_vocabulary={joined}"
    trainer = trainer_for(tmp_path, shard_dir, "precision.compute=bf16", *options)
    assert trainer.plan.accumulation(0) == 3
    steps = trainer.data.steps(0)
    with Casts() as casts:
        trainer.train_step(next(steps))
    steps.close()
    layers = trainer.model_config.num_hidden_layers
    assert casts.shapes[(97, 16)] == 1
    assert casts.shapes[(32, 16)] == casts.shapes[(16, 32)] == layers
    assert casts.shapes[(16, 16)] == 4 * layers + 2  # q, k, v and output of each layer; the heads' two transforms


@pytest.mark.parametrize("padded", ["true", "false"])
def test_gradients_equal_those_with_a_cast_for_each_micro_batch(tmp_path: Path, shard_dir: Path, padded: str) -> None:
    """In the second step, when the weight cache holds casts of older weights."""
    trainer = trainer_for(tmp_path, shard_dir, "precision.compute=bf16", f"speed.pad_vocabulary={padded}")
    steps = trainer.data.steps(0)
    trainer.train_step(next(steps))
    batch = next(steps)
    micro_batches = list(batch.micro_batches)
    steps.close()
    counts = trainer._global_counts(batch.counts)
    trainer._accumulate(StepBatch(batch.counts, iter(micro_batches)), counts)
    found = [parameter.grad.clone() for parameter in trainer.model.parameters()]
    trainer.model.zero_grad()
    for micro_batch in micro_batches:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = trainer.model(*micro_batch.tensors())
        (out.mlm_loss / counts[1] + out.nsp_loss / counts[0]).backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(found, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("attempts", [set(), {0}, {1}, {2}, {3}, {2, 3, 4}, {5}, {5, 6}])
def test_skipped_steps_shift_nothing(tmp_path: Path, shard_dir: Path, attempts: set[int]) -> None:
    """There are always six applied steps, with the schedule, rows and checkpoints of six steps.

    ||w|| of the fourth update is the norm of the weights in the third step's checkpoint.
    """
    trainer = trainer_for(tmp_path, shard_dir, "logging.layers_every_steps=2")
    spoil(trainer, attempts)
    trainer.run()
    training = [row for row in rows(tmp_path) if "lr" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5, 6]
    assert [row["lr"] for row in training] == trainer.learning_rates[:6].tolist()
    assert [row["step"] for row in rows(tmp_path) if "eval_loss" in row] == [0, 3, 6]
    assert [path.name for path in trainer.store.all()] == ["step_00000003", "step_00000006"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000003", "step_00000006"]
    assert trainer.progress.skipped == len(attempts)
    assert trainer.progress.samples_seen == 12 * (6 + len(attempts))
    assert trainer.applied.tolist() == [6]
    layers = [row for row in rows(tmp_path) if "trust_ratio" in row]
    assert [row["step"] for row in layers] == [2, 4, 6]
    saved = load_file(tmp_path / "checkpoints/step_00000003/model/model.safetensors")
    for row in layers:
        assert row["trust_ratio"].keys() == row["weight_norm"].keys() == row["update_norm"].keys() == saved.keys()
        for name, ratio in row["trust_ratio"].items():
            weight, update = row["weight_norm"][name], row["update_norm"][name]
            assert ratio == pytest.approx(weight / update if weight * update else 1.0, rel=2e-5)
    for name, norm in layers[1]["weight_norm"].items():
        assert norm == pytest.approx(saved[name].double().norm().item(), rel=1e-5)


def test_gradients_that_stay_nonfinite_end_the_run_with_a_diagnosis(tmp_path: Path, shard_dir: Path) -> None:
    trainer = trainer_for(tmp_path, shard_dir, "numerics.max_skipped_in_a_row=9")
    spoil(trainer, set(range(10**4)))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ConfigError, match="9 steps in a row had a gradient that is not finite"):
        trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_the_last_step_is_always_logged_and_layer_rows_can_be_turned_off(tmp_path: Path, shard_dir: Path) -> None:
    trainer_for(tmp_path, shard_dir, "logging.every_steps=4", "logging.layers_every_steps=0").run()
    assert [row["step"] for row in rows(tmp_path) if "lr" in row] == [4, 6]
    assert not [row for row in rows(tmp_path) if "trust_ratio" in row]


def test_evaluation_does_not_depend_on_the_micro_batch_size(tmp_path: Path, shard_dir: Path) -> None:
    trainer = trainer_for(tmp_path, shard_dir)
    whole = trainer.evaluate()
    trainer.plan = replace(trainer.plan, micro_batch_size=3)
    cut = trainer.evaluate()
    assert whole is not None
    assert cut == pytest.approx(whole, rel=1e-5)
    assert trainer.model.training


def request_stop_in(trainer: Trainer, attempt: int) -> None:
    """A stop request arrives during this global batch."""
    seen = iter(range(10**6))

    def hook(*_: object) -> None:
        if next(seen) == attempt:
            trainer.stop.request()

    trainer.optimizer.register_step_pre_hook(hook)


@pytest.mark.parametrize("attempt", [0, 1, 2])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, shard_dir: Path, whole: Trainer, attempt: int
) -> None:
    """Stopped before and at a boundary: the last step is saved, and the resumed run is bitwise the same."""
    trainer = trainer_for(tmp_path, shard_dir)
    request_stop_in(trainer, attempt)
    assert not trainer.run()
    assert load_progress(trainer.store.all()[-1]).step == attempt + 1
    again = trainer_for(tmp_path, shard_dir)
    assert again.progress.step == attempt + 1
    assert again.run()
    assert_same_run(again, whole)
    assert not [path for path in trainer.store.directory.iterdir() if "damaged" in path.name]


def test_a_step_of_a_process_without_others_is_given_up_between_micro_batches(
    tmp_path: Path, shard_dir: Path, whole: Trainer
) -> None:
    """In the second of three micro-batches of step 3: no more are run, and the resumed run is bitwise the same."""
    trainer, micro_batches = trainer_for(tmp_path, shard_dir), []

    def request(*_: object) -> None:
        if trainer.model.training:
            micro_batches.append(trainer.progress.step)
            if len(micro_batches) == 2 * each + 2:
                trainer.stop.request()

    each = trainer.plan.accumulation(0)
    trainer.model.register_forward_hook(request)
    assert not trainer.run()
    assert len(micro_batches) == 2 * each + 2
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert [load_progress(path).step for path in trainer.store.all()] == [2]
    again = trainer_for(tmp_path, shard_dir)
    assert again.run()
    assert_same_run(again, whole)


def test_stopped_in_the_last_step_only_the_last_evaluation_is_rerun(tmp_path: Path, shard_dir: Path) -> None:
    trainer = trainer_for(tmp_path, shard_dir)
    request_stop_in(trainer, 5)
    assert not trainer.run()
    assert [path.name for path in trainer.store.all()] == ["step_00000003", "step_00000006"]
    assert trainer_for(tmp_path, shard_dir).run()
    assert [row["step"] for row in rows(tmp_path) if "eval_loss" in row] == [0, 3, 6]
    assert trainer_for(tmp_path, shard_dir).run()
    assert [row["step"] for row in rows(tmp_path) if "eval_loss" in row] == [0, 3, 6]


@pytest.mark.parametrize("evaluation", [0, 1, 2])
def test_an_interrupted_evaluation_is_rerun_on_resume(
    tmp_path: Path, shard_dir: Path, whole: Trainer, evaluation: int
) -> None:
    """In the second of its five batches, at step 0, 3 or the last; the rows equal those of an uninterrupted run."""
    trainer, batches = trainer_for(tmp_path, shard_dir), []

    def request(*_: object) -> None:
        if not trainer.model.training:
            batches.append(trainer.progress.step)
            if len(batches) == 5 * evaluation + 2:
                trainer.stop.request()

    trainer.model.register_forward_hook(request)
    assert not trainer.run()
    assert len(batches) == 5 * evaluation + 4  # all-reduced with the third batch, read after the fourth
    assert trainer.model.training
    assert [load_progress(path).step for path in trainer.store.all()] == [3, 6][:evaluation]
    again = trainer_for(tmp_path, shard_dir)
    assert again.run()
    assert_same_run(again, whole)


def test_a_stop_during_skipped_steps_saves_no_step_twice(tmp_path: Path, shard_dir: Path) -> None:
    trainer = trainer_for(tmp_path, shard_dir)
    spoil(trainer, {3, 4})
    request_stop_in(trainer, 2)
    assert not trainer.run()
    assert [path.name for path in trainer.store.all()] == ["step_00000003"]
    assert trainer_for(tmp_path, shard_dir).run()


def test_steps_without_a_layer_row_compute_no_report(tmp_path: Path, shard_dir: Path) -> None:
    trainer = trainer_for(tmp_path, shard_dir, "logging.layers_every_steps=3")
    reports = []
    original = trainer.optimizer.layer_report
    trainer.optimizer.layer_report = lambda: reports.append(trainer.progress.step) or original()
    trainer.run()
    assert len(reports) <= 4  # of six steps: those that may be the third or sixth applied one
    assert [row["step"] for row in rows(tmp_path) if "trust_ratio" in row] == [3, 6]


@pytest.mark.parametrize("optimizer", ["muon", "muon_nvlamb", "adamh", "schedule_free_adamw"])
def test_a_resumed_run_of_any_optimizer_is_bitwise_the_same(tmp_path: Path, shard_dir: Path, optimizer: str) -> None:
    words = (f"optimizer={optimizer}", "optimizer.lr=1e-3")
    whole = trainer_for(tmp_path / "whole", shard_dir, *words)
    assert whole.run()
    trainer = trainer_for(tmp_path / "stopped", shard_dir, *words)
    request_stop_in(trainer, 1)
    assert not trainer.run()
    again = trainer_for(tmp_path / "stopped", shard_dir, *words)
    assert 0 < again.progress.step < 6
    assert again.run()
    assert_same_run(again, whole)
    averaged = optimizer == "schedule_free_adamw"
    saved = load_file(whole.store.all()[-1] / "model/model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    param = whole.model.bert.get_parameter(name)
    assert torch.equal(saved[name], param) != averaged
    if averaged:
        assert torch.equal(saved[name], whole.optimizer.state[param]["x"])


@pytest.mark.parametrize(("optimizer", "count"), [("lars", 3), ("adamw", 0), ("adam", 0), ("sgd", 0), ("lamb", 3)])
def test_every_optimizer_trains_and_layer_wise_ones_report(
    tmp_path: Path, shard_dir: Path, optimizer: str, count: int
) -> None:
    trainer = trainer_for(tmp_path, shard_dir, f"optimizer={optimizer}", "logging.layers_every_steps=2")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    assert trainer.progress.step == 6
    assert sum("trust_ratio" in row for row in rows(tmp_path)) == count
    changed = [name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])]
    assert "bert.bert.embeddings.word_embeddings.weight" in changed


def test_a_failed_run_finishes_its_last_checkpoint(tmp_path: Path, shard_dir: Path) -> None:
    """The step after a save diverges while the save is still being written."""
    trainer = trainer_for(tmp_path, shard_dir, "numerics.max_skipped_in_a_row=1")
    spoil(trainer, set(range(3, 9)))  # TEST_RECIPE saves after step 3
    diverged, save = threading.Event(), trainer.store.save

    def slow_save(*arguments: Any) -> Path:
        assert diverged.wait(60), "the run waited for the save before it diverged"
        time.sleep(0.5)
        return save(*arguments)

    def note_skipped(*arguments: Any) -> None:
        diverged.set()
        return original(*arguments)

    original, trainer.recovery.detector.note_skipped = trainer.recovery.detector.note_skipped, note_skipped  # type: ignore[method-assign]
    trainer.store.save = slow_save  # type: ignore[method-assign]
    with pytest.raises(DivergedError):
        trainer.run()
    (path,) = trainer.store.all()
    assert find_fault(path) is None


def test_saves_that_fail_again_and_again_end_the_run(tmp_path: Path, shard_dir: Path) -> None:
    options = ("checkpoint.every_steps=1", "checkpoint.max_failed_saves=2", "schedule.total_steps=50")
    trainer = trainer_for(tmp_path, shard_dir, *options)

    def fail(*_: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer.store.save = fail  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"step 2 could not be written .*as 1 before it; make room"):
        trainer.run()
    assert trainer.progress.step == 2


def test_the_micro_batch_size_that_auto_found_is_kept(tmp_path: Path, shard_dir: Path, monkeypatch, capsys) -> None:
    """A resumed run takes it from the checkpoint; with other ranks it is found again, with a word."""
    auto = ("batch.micro_batch_size=auto", "schedule.total_steps=3")
    monkeypatch.setattr(batch_plan, "_CPU_TOKENS", 5 * 16)
    assert trainer_for(tmp_path, shard_dir, *auto).run()
    monkeypatch.setattr(batch_plan, "_CPU_TOKENS", 3 * 16)
    assert trainer_for(tmp_path, shard_dir, *auto).plan.micro_batch_size == 5
    assert trainer_for(tmp_path, shard_dir, "schedule.total_steps=3").plan.micro_batch_size == 4  # not auto: as stated
    progress = replace(load_progress(tmp_path / "checkpoints/step_00000003"), ranks=8)
    monkeypatch.setattr(starting, "load_progress", lambda _: progress)
    capsys.readouterr()
    assert trainer_for(tmp_path, shard_dir, *auto).plan.micro_batch_size == 3
    assert "batch.micro_batch_size=auto: 3 samples on 1 ranks; it was 5 on 8" in capsys.readouterr().out


def test_loading_moments_is_no_collective(tmp_path: Path, shard_dir: Path, monkeypatch) -> None:
    """A sharded optimizer's ``state_dict`` is: within ``run_on_all_ranks`` a rank that fails would hang the others."""
    assert trainer_for(tmp_path / "first", shard_dir, "schedule.total_steps=3").run()
    inside, run_on_all_ranks = [], World.run_on_all_ranks

    def marked(world: World, work: Any, doing: str = "") -> Any:
        inside.append(1)
        try:
            return run_on_all_ranks(world, work, doing)
        finally:
            inside.pop()

    state_dict = NVLamb.state_dict

    def guarded(optimizer: NVLamb) -> dict[str, Any]:
        assert not inside
        return state_dict(optimizer)

    monkeypatch.setattr(World, "run_on_all_ranks", marked)
    monkeypatch.setattr(NVLamb, "state_dict", guarded)
    second = trainer_for(tmp_path / "second", shard_dir, f"init_from={tmp_path / 'first'}", "init_moments=keep")
    assert second.optimizer.state


def test_a_checkpoint_to_start_from_is_verified_on_one_rank(tmp_path: Path, shard_dir: Path, monkeypatch) -> None:
    """What all ranks run reads no checksums: with 256 ranks it would be read 256 times."""
    assert trainer_for(tmp_path / "first", shard_dir, "schedule.total_steps=3").run()
    read, sha256, on_first = [], files._sha256, World.run_on_first_rank

    def reading(path: Path, throttle: Any) -> str:
        read.append(path.name)
        return sha256(path, throttle)

    def verified(world: World, work: Any) -> str:
        monkeypatch.setattr(
            files, "_sha256", lambda path, throttle: (read.append(path.name), sha256(path, throttle))[1]
        )
        try:
            return on_first(world, work)
        finally:
            monkeypatch.setattr(files, "_sha256", None)

    monkeypatch.setattr(files, "_sha256", None)
    monkeypatch.setattr(World, "run_on_first_rank", verified)
    trainer_for(tmp_path / "second", shard_dir, f"init_from={tmp_path / 'first'}")
    assert read.count("model.safetensors") == 1


def test_the_content_of_each_shard_is_checked_by_one_rank_of_a_node(shard_dir: Path, monkeypatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(ShardReader, "check_content", lambda reader, _: checked.append(reader.path.name))
    config = load_config("pretrain", [*TEST_RECIPE, f"data.dir={shard_dir}"], PretrainConfig)
    for rank in range(2):
        world = World(rank, rank, 1, torch.device("cpu"), local_size=2)
        build.open_data(config, world, MetricsLog(None, 1))
    assert sorted(checked) == ["heldout_00000.hdf5", "train_00000.hdf5", "train_00001.hdf5", "train_00002.hdf5"]


def test_an_outage_while_a_checkpoint_is_loaded_is_waited_out(tmp_path: Path, shard_dir: Path, monkeypatch) -> None:
    assert trainer_for(tmp_path, shard_dir, "schedule.total_steps=3").run()
    left, restore = [1, 2], starting.restore

    def failing(*arguments: Any) -> Any:
        if left:
            raise OSError(errno.ESTALE, f"Stale file handle {left.pop()}")
        return restore(*arguments)

    monkeypatch.setattr(starting, "restore", failing)
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    assert trainer_for(tmp_path, shard_dir, "schedule.total_steps=3").progress.step == 3
    assert not left
