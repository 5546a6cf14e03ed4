"""Measures the cost of background checkpoints: steps during a save compared with steps without, in one run.

    OMP_NUM_THREADS=1 python scripts/bench_save.py /tmp/scratch save.json 6 recipe=bert_base_1gpu data.dir=DIR

A round is the steps during one save, as many without, and one blocking save. A step waits only for the copy into
host memory, which is compared with the blocking save. Leave one core to the writer (OMP_NUM_THREADS below the number
of cores), as in a run on GPUs.
"""

import shutil
import statistics
import time
from pathlib import Path

import repository_root  # noqa: F401  makes bert_pretrain importable
from results_file import argument_parser, write_result

from bert_pretrain.build import trial_trainer
from bert_pretrain.checkpoint.async_writer import CheckpointWriter
from bert_pretrain.checkpoint.store import Progress
from bert_pretrain.config import PretrainConfig
from bert_pretrain.data.collate import StepBatch
from bert_pretrain.distributed.world import open_world
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.plan.hardware_peaks import timed
from bert_pretrain.training.trainer import Trainer

_WARM_UP = 3


class Bench:
    """Times the steps and saves of a run."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.writer = CheckpointWriter(trainer.store, print, 1)
        self.batches = trainer.data.steps(0)
        self.number = 0
        self.alone, self.during = list[float](), list[float]()
        self.copies, self.blocking = list[float](), list[float]()

    def step(self) -> float:
        """Seconds of the next step, without loading its samples."""
        batch = next(self.batches)
        ready = StepBatch(batch.counts, iter(list(batch.micro_batches)))
        return timed(lambda: self.trainer.train_step(ready), self.trainer.world.device)

    def save(self) -> float:
        """Start a save; seconds until the run can continue."""
        self.number += 1
        started = time.perf_counter()
        state = self.trainer.optimizer.state_dict()
        self.writer.save(self.trainer.model.bert, state, Progress(step=self.number), "seed: 1\n")
        return time.perf_counter() - started

    def round(self) -> None:
        """Steps during a save, as many without, then a blocking save."""
        self.copies.append(self.save())
        steps = 0
        thread = self.writer._thread
        assert thread is not None
        while thread.is_alive():
            seconds = self.step()
            if thread.is_alive():  # the save lasted for the whole step
                self.during.append(seconds)
            steps += 1
        self.writer.finish()
        self.alone += [self.step() for _ in range(steps)]
        started = time.perf_counter()
        self.save()
        self.writer.finish()
        self.blocking.append(time.perf_counter() - started)


def main() -> None:
    """Measure and write the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("scratch", type=Path, help="directory for the checkpoints")
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("rounds", type=int)
    parser.add_argument("options", nargs="*", metavar="option", help="options of bert-pretrain pretrain")
    given = parser.parse_args()
    config = load_config("pretrain", given.options, PretrainConfig)
    shutil.rmtree(given.scratch / "checkpoints", ignore_errors=True)
    with open_world(config.device) as world:
        bench = Bench(trial_trainer(config, world, given.scratch / "checkpoints"))
        for _ in range(_WARM_UP):
            bench.step()
        bench.save()  # the first allocates the host memory that the others reuse
        bench.writer.finish()
        for _ in range(given.rounds):
            bench.round()
        bench.batches.close()
    alone, during = statistics.median(bench.alone), statistics.median(bench.during)
    copy, blocking = statistics.median(bench.copies), statistics.median(bench.blocking)
    size = sum(file.stat().st_size for file in bench.trainer.store.all()[-1].rglob("*") if file.is_file())
    row = {
        "checkpoint MB": round(size / 1e6),
        "step alone, s": alone,
        "step during a save, s": during,
        "slower": f"{during / alone - 1:+.1%}",
        "steps during saves": len(bench.during),
        "blocking save, s": blocking,
        "copy to host memory, s": copy,
        "share of the blocking save": f"{copy / blocking:.1%}",
    }
    write_result(given.result, "Cost of background checkpoints", [row], "Medians.")


if __name__ == "__main__":
    main()
