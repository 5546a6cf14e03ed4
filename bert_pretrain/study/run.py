"""Runs a study.

A study is one YAML, ``configs/study/NAME.yaml``: arms, each a few options of ``pretrain``; the claims about them; and
seeds, samples and learning rates for each scale. Every run is an ordinary run of ``pretrain`` with its own directory
under ``out_dir/runs``. Runs go one after the other on one device. A study that was stopped resumes at the step where
it stopped. Finished runs keep ``result.json`` and ``metrics.jsonl``, but no checkpoints.
"""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import open_world
from bert_pretrain.errors import require
from bert_pretrain.files.directory_lock import lock_directory
from bert_pretrain.files.file_system import require_writable
from bert_pretrain.model.bert import silence_transformers
from bert_pretrain.output import go_on_without_reader
from bert_pretrain.plan.hardware_peaks import device_name
from bert_pretrain.study.batch_scaling import BatchScaling
from bert_pretrain.study.curve import Curve
from bert_pretrain.study.figure import draw_study
from bert_pretrain.study.options import StudyConfig
from bert_pretrain.study.page import print_page, write_files
from bert_pretrain.study.runs import Runs
from bert_pretrain.study.scaling_page import write_scaling
from bert_pretrain.study.search import Cost, best_rate, search
from bert_pretrain.study.verdict import RULE, in_nats, judge, last_losses, table

_EVALUATIONS, _CHECKPOINTS = 25, 5  # per run, approximately


class Study:
    """A study of the last losses of its arms."""

    def __init__(self, runs: Runs) -> None:
        self.runs, self.scale = runs, runs.scale
        self.tried: dict[str, dict[float, Cost]] = {}
        """Of every arm whose learning rate was searched: the rates, each with its last loss."""

    def run(self) -> dict[str, list[Curve]]:
        """The curves of each arm, one per seed. Exits if a stop was requested, after a checkpoint."""
        arms = self.runs.config.chosen_arms
        self.bases = {arm: self.runs.compose(arm) for arm in arms}  # checks all arms before the first run
        for arm in arms:
            self._changes(arm)
        self.runs.write_corpus()
        curves: dict[str, list[Curve]] = {}
        for arm in arms:
            rate = self._rate(arm)
            curves[arm] = [self._curve(arm, seed, rate) for seed in self.scale.seeds]
        return curves

    def _rate(self, arm: str) -> float:
        """The best of the learning rates to try for ``arm``; without any, the one in its options."""
        rates = self.scale.learning_rates.get(arm, [])
        if len(rates) < 2:
            return rates[0] if rates else self.bases[arm].optimizer.lr

        def cost(rate: float, _: dict[float, Cost]) -> Cost:
            final = self._curve(arm, self.scale.tuning_seed, rate).final
            return final, final

        self.tried[arm] = search(rates, cost)
        return best_rate(self.tried[arm])

    def _changes(self, arm: str) -> dict[str, int]:
        steps = self.scale.samples // self.bases[arm].batch.global_batch_size
        scale = self.runs.config.scale
        require(steps >= 2, f"scales.{scale}.samples", self.scale.samples, f"two batches or more ({arm})")
        return {
            "schedule.total_steps": steps,
            "training.evaluate_every_steps": max(1, steps // _EVALUATIONS),
            "checkpoint.every_steps": max(1, steps // _CHECKPOINTS),
        }

    def _curve(self, arm: str, seed: int, rate: float) -> Curve:
        return self.runs.curve(arm, self.bases[arm], seed, rate, self._changes(arm))


def run_study(config: StudyConfig) -> None:
    """Run what is missing, then write verdicts and figure."""
    import_module("scipy")  # needed only after the runs: the command tells now if it is missing
    silence_transformers()
    require_writable(Path(config.out_dir), "out_dir")
    go_on_without_reader()
    stop = StopRequest().install_handlers()
    with lock_directory(Path(config.out_dir), "out_dir"), open_world(config.device) as world:
        require(world.size == 1, "processes", world.size, "1: a study runs on one device")
        runs, device = Runs(config, world, stop), device_name(world.device)
        if config.chosen.target is None:
            write_study(Study(runs), device)
        else:
            write_scaling(BatchScaling(runs), device)


def write_study(study: Study, device: str) -> None:
    """Run the study; write ``study.md``, ``.html``, ``.json``, ``.csv``, ``.png`` and ``.svg`` into ``out_dir``."""
    curves, config, out_dir = study.run(), study.runs.config, study.runs.out_dir
    rows, claims = table(curves, study.tried), config.chosen_claims
    verdicts = judge(claims, [last_losses(curves)] * len(claims))
    sentences = [verdict.sentence(in_nats, "nats") for verdict in verdicts]
    chart = draw_study(out_dir, config.question, curves)
    searched = [
        {"arm": arm, "rate": rate, "loss": loss}
        for arm, tried in study.tried.items()
        for rate, (loss, _) in sorted(tried.items())
    ]
    numbers = {"curves": [asdict(curve) for runs in curves.values() for curve in runs], "searched": searched}
    write_files(config, out_dir, device, rows, sentences, RULE, numbers, chart)
    print_page(out_dir)
