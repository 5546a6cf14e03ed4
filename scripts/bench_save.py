"""What a checkpoint costs a run: steps beside a save in the background against steps alone, in one run.

    python scripts/bench_save.py SCRATCH_DIR RESULT.json ROUNDS OPTION...

OPTIONs are those of bert_pretrain.pretrain. A round is the steps that one save lasts, and as many without. The step
itself waits for the copy in memory alone, which is compared with a save that the run would wait for. Leave the writer
a core of its own (OMP_NUM_THREADS below the number of cores), as a run on GPUs does.
"""

import shutil
import statistics
import sys
import time
from pathlib import Path

from results_file import write_result

from bert_pretrain.build import build_trainer
from bert_pretrain.checkpoint.async_writer import CheckpointWriter
from bert_pretrain.checkpoint.store import CheckpointStore, Progress
from bert_pretrain.config import PretrainConfig
from bert_pretrain.config_loading import load_config
from bert_pretrain.data.collate import StepBatch
from bert_pretrain.distributed.world import open_world
from bert_pretrain.plan.hardware_peaks import timed
from bert_pretrain.training.metrics import MetricsLog
from bert_pretrain.training.trainer import Trainer

_WARM_UP = 3


class Bench:
    """A run's steps and saves, timed."""

    def __init__(self, trainer: Trainer, store: CheckpointStore) -> None:
        self.trainer, self.store = trainer, store
        self.writer = CheckpointWriter(store, print)
        self.batches = trainer.data.steps(0)
        self.number = 0
        self.alone, self.beside = list[float](), list[float]()
        self.copies, self.blocking = list[float](), list[float]()

    def step(self) -> float:
        """Seconds of the next step, its samples at hand."""
        batch = next(self.batches)
        ready = StepBatch(batch.counts, iter(list(batch.micro_batches)))
        return timed(lambda: self.trainer.train_step(ready), self.trainer.world.device)

    def save(self) -> float:
        """Begin a save; seconds until the run could go on."""
        self.number += 1
        started = time.perf_counter()
        state = self.trainer.optimizer.state_dict()
        self.writer.save(self.trainer.model.bert, state, Progress(step=self.number), "seed: 1\n")
        return time.perf_counter() - started

    def round(self) -> None:
        """Steps beside a save, then as many alone; then a save that is waited for."""
        self.copies.append(self.save())
        steps = 0
        while self.writer.is_writing():
            seconds = self.step()
            if self.writer.is_writing():  # not where it ended within the step
                self.beside.append(seconds)
            steps += 1
        self.writer.finish()
        self.alone += [self.step() for _ in range(steps)]
        started = time.perf_counter()
        self.save()
        self.writer.finish()
        self.blocking.append(time.perf_counter() - started)


def main() -> None:
    """Measure and write down."""
    scratch, result, rounds, options = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    config = load_config("pretrain", options, PretrainConfig)
    shutil.rmtree(scratch / "checkpoints", ignore_errors=True)
    store = CheckpointStore(scratch / "checkpoints", 1, None)
    with open_world(config.device) as world:
        log = MetricsLog(None, config.schedule.total_steps)
        bench = Bench(build_trainer(config, world, log, store, ""), store)
        for _ in range(_WARM_UP):
            bench.step()
        bench.save()  # the first takes the memory that the others reuse
        bench.writer.finish()
        for _ in range(rounds):
            bench.round()
        bench.batches.close()  # type: ignore[attr-defined]
    alone, beside = statistics.median(bench.alone), statistics.median(bench.beside)
    copy, blocking = statistics.median(bench.copies), statistics.median(bench.blocking)
    size = sum(file.stat().st_size for file in store.all()[-1].rglob("*") if file.is_file())
    row = {
        "checkpoint MB": round(size / 1e6),
        "step alone, s": alone,
        "step beside a save, s": beside,
        "slower": f"{beside / alone - 1:+.1%}",
        "steps beside": len(bench.beside),
        "save waited for, s": blocking,
        "copy that a step waits for, s": copy,
        "share of it": f"{copy / blocking:.1%}",
    }
    write_result(result, "What a checkpoint in the background costs a run", [row], "Medians.")


if __name__ == "__main__":
    main()
