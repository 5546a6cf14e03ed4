"""Trainers on fake CUDA tensors: built by the program's own builder, with samples from memory instead of shards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from bert_pretrain import build
from bert_pretrain.checkpoint.store import Progress
from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.data.ready_made import Opened
from bert_pretrain.data.sample_order import SampleOrder
from bert_pretrain.data.shards import Arrays
from bert_pretrain.distributed.world import World
from bert_pretrain.starting import RunStart
from bert_pretrain.training import first_step, garbage_collection
from bert_pretrain.training.metrics import MetricsLog
from bert_pretrain.training.trainer import Trainer
from tests.fake_cuda.device import DEVICE
from tests.fake_cuda.guard import DeviceFault, DeviceGuard

_HEAD = 14  # the numbers of a step before those of its layers: StepNumbers


@dataclass
class Samples:
    """Stands in for a ``ShardSet``: samples of every length, of the same content in every run."""

    length: int
    max_predictions: int
    vocab_size: int
    samples: int
    fingerprint: str = ""

    def read(self, start: int, stop: int) -> Arrays:
        """Samples ``start`` to ``stop``, as ``ShardSet.read``."""
        numbers = np.arange(start, stop) % self.samples
        lengths = self.length // 2 + numbers * 7 % (self.length // 2 + 1)
        mask = np.arange(self.length) < lengths[:, None]
        masked = 1 + numbers % self.max_predictions
        positions = np.arange(1, 1 + self.max_predictions) * (np.arange(self.max_predictions) < masked[:, None])
        ids = (numbers[:, None] + np.arange(self.length)) % self.vocab_size * mask
        return {
            "input_ids": ids,
            "input_mask": mask.astype(np.int64),
            "segment_ids": (np.arange(self.length) >= self.length // 2) & mask,
            "masked_lm_positions": positions,
            "masked_lm_ids": ids[:, 1 : 1 + self.max_predictions] * (positions > 0),
            "next_sentence_labels": numbers % 2,
        }


class MemoryStore:
    """Stands in for a ``CheckpointStore``: keeps the state, because fake tensors cannot be written to a file."""

    record = None
    directory = Path("memory")

    def __init__(self) -> None:
        self.saved: list[tuple[dict[str, Any], dict[str, Any], Progress]] = []

    def save(self, model: Any, optimizer_state: dict[str, Any], progress: Progress, *_: Any) -> None:
        """Keep what would be written; all of it must be on the host."""
        weights = dict(model.state_dict())
        on = {leaf.device.type for leaf in tree_leaves((weights, optimizer_state)) if isinstance(leaf, torch.Tensor)}
        if on != {"cpu"}:
            raise DeviceFault(f"a checkpoint is written from tensors on {', '.join(sorted(on))}")
        self.saved.append((weights, optimizer_state, progress))

    def restore(self, start: RunStart) -> Progress:
        """Load the newest, as ``checkpoint.store.restore`` does from files."""
        weights, state, progress = self.saved[-1]
        start.model.bert.load_state_dict(weights, strict=True)
        on_device = tree_map_only(torch.Tensor, lambda tensor: tensor.to(DEVICE), state)
        start.optimizer.load_state_dict(on_device)
        start.precision.load_state_dict(progress.precision)
        return progress


@dataclass
class Run:
    """A trainer on fake CUDA, and what its guard has seen."""

    trainer: Trainer
    guard: DeviceGuard
    live: list[tuple[int, int]] = field(default_factory=list)
    """Storages on the device, and their bytes, before each step."""
    reads: list[int] = field(default_factory=list)
    """Waits for the numbers of a step, each time that the trainer finishes one."""

    def check(self) -> None:
        """Raise ``DeviceFault`` for growth, other reads than one a step and one step late, or a tensor elsewhere."""
        grown = [now for now in self.live[3:] if now != self.live[2]]
        if grown:
            raise DeviceFault(f"storages and bytes grow: {self.live[2]} before step 3, then {grown}")
        if max(self.reads) > 1 or sum(self.reads) != len(self.live):
            raise DeviceFault(f"{len(self.live)} steps, and so many reads at their ends: {self.reads}")
        if any(now - recorded > 1 for recorded, now in self.guard.waits):
            raise DeviceFault(f"numbers are read more than a step late: {self.guard.waits}")
        for name, tensor in self.tensors():
            if tensor.device != DEVICE:
                raise DeviceFault(f"{name} is on {tensor.device}")

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Everything that steps keep, with names."""
        trainer, inner = self.trainer, self.trainer.optimizer
        yield from trainer.model.named_parameters()
        yield from trainer.model.named_buffers()
        for state in inner.state.values():
            yield from state.items()
        kept = {**vars(inner), **vars(trainer), **vars(trainer.precision)}
        yield from ((name, value) for name, value in kept.items() if isinstance(value, torch.Tensor))


def numbers_of_steps(skipped: tuple[int, ...] = (), spikes: tuple[int, ...] = ()) -> Any:
    """``DeviceGuard.answers``: the numbers of a run that goes well, but for the steps named (the first is 1)."""

    def answer(size: int, place: int, step: int) -> float:
        if size < _HEAD:  # of an evaluation: stop requests, or sums
            return 0.0 if size == 1 else 1.0
        skip = step in skipped
        head = [float(skip), 1e-3, float("nan") if skip else 1.0, 1024.0, 0.0]
        loss = 4e4 if step in spikes else 400.0 + step % 3
        return [*head, 10.0, 40.0, 300.0, 9000.0, 0.0, loss, 5.0, 4.0, 4.0][place] if place < _HEAD else 1.0

    return answer


@contextmanager
def built(
    config: PretrainConfig, guard: DeviceGuard, folder: Path, store: MemoryStore, resumed: bool = False
) -> Iterator[Run]:
    """The trainer of ``config`` on fake CUDA, to be run in this context; ``resumed`` from what ``store`` holds."""
    length, micro_batch_size = config.data.sequence_length, config.batch.micro_batch_size
    assert isinstance(micro_batch_size, int)
    samples = partial(Samples, length, max(2, length // 6), config.model.vocab_size)
    order = SampleOrder(config.seed, 1 << 16, config.data.block_size)
    real_build_model = build.build_model

    def on_the_device(*args: Any) -> Any:
        with DEVICE, patch.object(build.PretrainingModel, "to", lambda model, _: model):
            return real_build_model(*args)  # fake weights cannot be moved to another device

    stand_ins = {
        "open_data": lambda *_: (Opened(samples(1 << 16), samples(micro_batch_size + 2), None), order),
        "check_before_training": lambda *_: None,
        "measured_matrix_rate": lambda *_: 1e12,
        "build_model": on_the_device,
    }
    starts = {
        "find_checkpoint": lambda *_: "memory" if resumed else "",
        "resume": lambda start, _: store.restore(start),
    }
    log = MetricsLog(folder / "metrics.jsonl", config.schedule.total_steps)
    with ExitStack() as stack:
        for name, value in stand_ins.items():
            stack.enter_context(patch.object(build, name, value))
        for name, value in starts.items():
            stack.enter_context(patch.object(build.RunStart, name, value))
        stack.enter_context(patch.object(first_step, "DEVICES", ()))  # its comparison reads numbers
        # torch can crash when fake tensors are collected while their mode is on
        stack.enter_context(patch.object(garbage_collection.gc, "collect", lambda: 0))
        trainer = build.build_trainer(config, World(0, 0, 1, DEVICE), log, store, resolved_yaml(config))  # type: ignore[arg-type]
        run = Run(trainer, guard)
        writer = trainer._writer
        start_to_write = writer.save

        def write(*parts: Any) -> None:  # to the end: a mode of fake tensors serves one thread
            start_to_write(*parts)
            writer.join()

        writer.save = write  # type: ignore[method-assign]
        train_step, finish, evaluate = trainer.train_step, trainer._finish_previous_step, trainer.evaluate

        def hot_step(batch: Any) -> Any:
            run.live.append(guard.live())
            guard.step += 1
            with guard.watching():
                return train_step(batch)

        def hot_finish() -> bool:
            before = len(guard.waits)
            with guard.watching():
                applied = finish()
            run.reads.append(len(guard.waits) - before)
            return applied

        def hot_evaluate() -> Any:
            with guard.watching():
                return evaluate()

        trainer.train_step, trainer._finish_previous_step = hot_step, hot_finish  # type: ignore[method-assign]
        trainer.evaluate = hot_evaluate  # type: ignore[method-assign]
        yield run
