"""Compares grouped padding with samples laid end to end (speed.packing): padding, and tokens a second, in turns.

    OMP_NUM_THREADS=1 python scripts/bench_padding.py RESULT.json ROUNDS OPTION... -- OPTION... [-- ...]

Each OPTION... is a case: options of bert-pretrain pretrain. Padding is counted over 20 steps, or an epoch if that is
shorter. A round is one step each way on the same samples; CPU time counts, because the machine may be shared.
"""

import statistics
import sys
import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import repository_root  # noqa: F401  makes bert_pretrain importable
from results_file import argument_parser, write_result

from bert_pretrain.build import trial_trainer
from bert_pretrain.config import PretrainConfig
from bert_pretrain.data.collate import StepBatch
from bert_pretrain.data.loader import TrainingData
from bert_pretrain.distributed.world import open_world
from bert_pretrain.options.config_loading import load_config

WAYS = {
    "grouped by length": {"group_by_length": True, "packing": False},
    "packed": {"group_by_length": False, "packing": True},
}
WARM_UP, COUNTED = 1, 20


def padding(data: TrainingData, batch: int) -> tuple[float, float, int]:
    """The share of padding in what is computed, the micro-batches of a step, and the number of their shapes."""
    steps = max(1, min(COUNTED, data.shards.samples // batch))
    shapes = [one.input_ids.shape for step in range(steps) for one in data.micro_batches(step)]
    real = sum(data.counts(step).tokens for step in range(steps))
    return 1 - real / sum(shape.numel() for shape in shapes), len(shapes) / steps, len(set(shapes))


def rows(config: PretrainConfig, rounds: int) -> list[dict[str, object]]:
    """The rows of one case."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with open_world(config.device) as world:
        speeds = {name: replace(config.speed, **options) for name, options in WAYS.items()}
        trainers = {
            name: trial_trainer(replace(config, speed=speed), world, Path("none")) for name, speed in speeds.items()
        }
        for step in range(WARM_UP + rounds):
            for name, trainer in trainers.items():
                counts, ready = trainer.data.counts(step), list(trainer.data.micro_batches(step))
                started = time.process_time()
                trainer.train_step(StepBatch(counts, iter(ready)))
                if step >= WARM_UP:
                    seconds[name].append((time.process_time() - started) / counts.tokens)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        tokens = sum(trainer.data.counts(step).tokens for step in range(WARM_UP + rounds))
        full = tokens / ((WARM_UP + rounds) * config.batch.global_batch_size * config.data.sequence_length)
        found: list[dict[str, object]] = []
        for name, trainer in trainers.items():
            share, micro_batches, shapes = padding(trainer.data, config.batch.global_batch_size)
            found.append(
                {
                    "shards": Path(config.data.dir).name,
                    "tokens a sample": config.data.sequence_length,
                    "model": f"{config.model.num_hidden_layers}x{config.model.hidden_size}",
                    "way": name,
                    "padding at full length": f"{1 - full:.1%}",
                    "padding": f"{share:.1%}",
                    "micro-batches a step": round(micro_batches, 1),
                    "shapes": shapes,
                    "real tokens per CPU second": 1 / medians[name],
                    "to grouped": f"{medians['grouped by length'] / medians[name]:.3f}",
                }
            )
    print(found, flush=True)
    return found


def main() -> None:
    """Measure all cases and write the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("rounds", type=int)
    given = parser.parse_args(sys.argv[1:3])
    cases = [list(words) for last, words in groupby(sys.argv[3:], lambda word: word == "--") if not last]
    found = [row for words in cases for row in rows(load_config("pretrain", words, PretrainConfig), given.rounds)]
    note = f"Medians of {given.rounds} steps each way, on the same samples, in turns; one thread."
    write_result(given.result, "Padding: samples grouped by length, and laid end to end (speed.packing)", found, note)


if __name__ == "__main__":
    main()
