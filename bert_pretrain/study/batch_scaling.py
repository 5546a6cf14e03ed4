"""Steps and samples to one held-out loss over batch sizes: where does an optimizer leave perfect scaling?

For every arm (an optimizer) and batch size, the learning rate is searched with the tuning seed (``search.py``); then
the best is run with every seed. The search of a batch size begins at the best rate of the one before it times the root
of their ratio. The learning rate is constant after a warm-up of a fixed number of steps, so that no run's past depends
on its end: a run ends at the target. It is given up after ``samples``, or ``give_up_factor`` times the steps that the
baseline needed in its search at this batch size; in the search, after the steps of the best rate so far.
"""

import math
from collections.abc import Iterator
from functools import cache

from bert_pretrain.config import PretrainConfig
from bert_pretrain.study.curve import Curve
from bert_pretrain.study.runs import Runs
from bert_pretrain.study.search import WORST, Cost, best_rate, search

_CHECKPOINT_EVERY = 10  # evaluations

Cell = tuple[str, int]
"""An arm and a batch size."""


class BatchScaling:
    """The runs of the study; finished ones are not repeated."""

    def __init__(self, runs: Runs) -> None:
        assert runs.scale.target is not None
        self.runs, self.scale, self.target = runs, runs.scale, runs.scale.target
        self.tried: dict[Cell, dict[float, Cost]] = {}
        """Of every arm and batch size searched: the rates, each with its steps to the target and its last loss."""
        self.searched: dict[tuple[str, int, float], Curve] = {}
        """The run of each of these rates."""
        self.curves: dict[Cell, list[Curve]] = {}
        """Of every arm and batch size: the runs with the best rate, by seed; none if no rate reached the target."""
        self.cpu_seconds = 0.0
        self.base = cache(self._base)

    def rounds(self) -> Iterator[None]:
        """Of one optimizer after the other, search the learning rates and run all seeds; the baseline is the first.

        Yields after every seed.
        """
        first = self.target.baseline
        arms = [first, *(arm for arm in self.runs.config.chosen_arms if arm != first)]
        for arm in arms:
            for batch in self.target.sizes_of(arm):
                self.base(arm, batch)  # checks the options of all arms before the first run
        self.runs.write_corpus()
        for arm in arms:
            self._search_all(arm)
            for seed in self.scale.seeds:
                for batch in self.target.sizes_of(arm):
                    self._compare(arm, batch, seed)
                yield

    def _compare(self, arm: str, batch: int, seed: int) -> None:
        """Run a seed with the best learning rate, unless none has reached the target."""
        rate = best_rate(self.tried[arm, batch])
        runs = self.curves.setdefault((arm, batch), [])
        if self.tried[arm, batch][rate][0] < math.inf:
            runs.append(self._curve(arm, batch, seed, rate, self._most_steps(arm, batch)))

    def _search_all(self, arm: str) -> None:
        start, sizes = self.scale.learning_rates[arm], self.target.sizes_of(arm)
        for batch, larger in zip(sizes, [*sizes[1:], sizes[-1]], strict=True):
            found = self._search(arm, batch, start)
            start = [best_rate(found) * 2 ** round(math.log2(larger / batch) / 2)]

    def _search(self, arm: str, batch: int, start: list[float]) -> dict[float, Cost]:
        def cost(rate: float, before: dict[float, Cost]) -> Cost:
            fewest = min((steps for steps, _ in before.values()), default=math.inf)
            most = self._most_steps(arm, batch)
            if fewest < math.inf:
                every = self._evaluate_every(batch)
                most = min(most, max(self._least_steps(arm, batch), math.ceil(fewest / every) * every))
            curve = self._curve(arm, batch, self.scale.tuning_seed, rate, most)
            self.searched[arm, batch, rate] = curve
            return WORST if curve.diverged else (curve.steps_to(self.target.loss), curve.final)

        self.tried[arm, batch] = search(start, cost)
        return self.tried[arm, batch]

    def _evaluate_every(self, batch: int) -> int:
        return max(1, self.target.evaluate_every_samples // batch)

    def _least_steps(self, arm: str, batch: int) -> int:
        return max(2, self.base(arm, batch).schedule.warmup)

    def _most_steps(self, arm: str, batch: int) -> int:
        """Those of ``samples``; for others than the baseline at most ``give_up_factor`` times its steps."""
        most = self.scale.samples / batch
        if arm != self.target.baseline:
            steps, _ = min(self.tried[self.target.baseline, batch].values())
            most = min(most, self.target.give_up_factor * steps)
        return max(self._least_steps(arm, batch), int(most))

    def _base(self, arm: str, batch: int) -> PretrainConfig:
        return self.runs.compose(arm, [f"batch.global_batch_size={batch}"])

    def _curve(self, arm: str, batch: int, seed: int, rate: float, steps: int) -> Curve:
        base, every = self.base(arm, batch), self._evaluate_every(batch)
        changes = {
            "batch.global_batch_size": batch,
            "schedule.total_steps": steps,
            "training.evaluate_every_steps": every,
            "checkpoint.every_steps": every * _CHECKPOINT_EVERY,
            "logging.every_steps": every,
        }
        curve = self.runs.curve(arm, base, seed, rate, changes, f"batch_{batch}")
        self.cpu_seconds += curve.cpu_seconds
        return curve
