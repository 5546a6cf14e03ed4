"""Runs a study.

A study is one YAML, ``configs/study/NAME.yaml``: arms, each a few options of ``pretrain``; the claims about them; and
seeds, samples and learning rates for each scale. Every run is an ordinary run of ``pretrain`` with its own directory
under ``out_dir/runs``. Runs go one after the other on one device. A study that was stopped resumes at the step where
it stopped. Finished runs keep ``result.json`` and ``metrics.jsonl``, but no checkpoints.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path

from bert_pretrain.directory_lock import lock_directory
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import open_world
from bert_pretrain.errors import require
from bert_pretrain.file_system import require_writable
from bert_pretrain.model.bert import silence_transformers
from bert_pretrain.output import go_on_without_reader
from bert_pretrain.plan.hardware_peaks import device_name
from bert_pretrain.study.batch_scaling import BatchScaling
from bert_pretrain.study.curve import Curve
from bert_pretrain.study.figure import draw_study
from bert_pretrain.study.options import StudyConfig
from bert_pretrain.study.runs import Runs
from bert_pretrain.study.scaling_page import write_scaling
from bert_pretrain.study.search import Cost, best_rate, search
from bert_pretrain.study.verdict import judge, page, table

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
    silence_transformers()
    require_writable(Path(config.out_dir), "out_dir")
    go_on_without_reader()
    stop = StopRequest().install_handlers()
    with lock_directory(Path(config.out_dir), "out_dir"), open_world(config.device) as world:
        require(world.size == 1, "processes", world.size, "1: a study runs on one device")
        runs, device = Runs(config, world, stop), device_name(world.device)
        if config.chosen.target is None:
            write_study(config, Study(runs), device)
        else:
            write_scaling(BatchScaling(runs), device)


def write_study(config: StudyConfig, curves: dict[str, list[Curve]], device: str) -> None:
    """Write ``study.json``, ``study.png`` and ``study.md`` into ``out_dir``; print the last."""
    out_dir, rows = Path(config.out_dir), table(curves, config.chosen.learning_rates)
    verdicts = [judge(claim, curves) for claim in config.chosen_claims]
    draw_study(out_dir / "study.png", config.question, curves)
    text = page(config.question, config.article, rows, verdicts, config.chosen.note)
    (out_dir / "study.md").write_text(text, encoding="utf-8")
    result = {
        "what": config.question,
        "scale": config.scale,
        "date": time.strftime("%Y-%m-%d"),
        "device": device,
        "command": f"bert-pretrain study {config.name} scale={config.scale}",
        "article": config.article,
        "verdicts": [verdict.sentence for verdict in verdicts],
        "note": config.chosen.note,
        "rows": rows,
        "curves": [asdict(curve) for arm in curves.values() for curve in arm],
        "options": asdict(config),
    }
    (out_dir / "study.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\n{text}\nwrote {out_dir}/study.md, study.png and study.json")
