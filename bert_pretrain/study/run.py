"""Runs a study.

A study is one YAML, ``configs/study/NAME.yaml``: arms, each a few options of ``pretrain``; the article's claims about
them; and seeds, samples and learning rates for each scale. Every run is an ordinary run of ``pretrain`` with its own
directory under ``out_dir/runs``. Runs go one after the other on one device. A study that was stopped resumes at the
step where it stopped. Finished runs keep ``result.json`` and ``metrics.jsonl``, but no checkpoints.
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bert_pretrain.build import pretrain
from bert_pretrain.checkpoint.directories import RECORD
from bert_pretrain.config import PretrainConfig, check_run_dir
from bert_pretrain.config_loading import load_config
from bert_pretrain.directory_lock import lock_directory
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World, open_world
from bert_pretrain.errors import EXIT_STOPPED, ConfigError, DivergedError, require
from bert_pretrain.file_system import replace_file, require_writable
from bert_pretrain.hub.shape import resolve_if_needed
from bert_pretrain.model.bert import silence_transformers
from bert_pretrain.output import go_on_without_reader
from bert_pretrain.plan.hardware_peaks import device_name
from bert_pretrain.study.figure import draw_study
from bert_pretrain.study.language import write_corpus
from bert_pretrain.study.options import SpikeConfig, StudyConfig
from bert_pretrain.study.verdict import Curve, best_rate, judge, page, table
from bert_pretrain.training.metrics import read_rows

_EVALUATIONS, _CHECKPOINTS = 25, 5  # per run, approximately


class Study:
    """The runs of one study; finished runs are not repeated."""

    def __init__(self, config: StudyConfig, world: World, stop: StopRequest) -> None:
        self.config, self.world, self.stop = config, world, stop
        self.scale, self.out_dir = config.chosen, Path(config.out_dir)

    def run(self) -> dict[str, list[Curve]]:
        """The curves of each arm, one per seed. Exits if a stop was requested, after a checkpoint."""
        for arm in self.config.chosen_arms:  # check the options of all arms before the first run
            self._run_config(arm, self.scale.seeds[0])
        if self.scale.corpus is not None:
            write_corpus(self.out_dir / "corpus", self.scale.corpus)
        curves: dict[str, list[Curve]] = {}
        for arm in self.config.chosen_arms:
            rate = self._rate(arm)
            curves[arm] = [self._curve(arm, seed, rate) for seed in self.scale.seeds]
        return curves

    def _rate(self, arm: str) -> float | None:
        """The best of the learning rates to try for ``arm``; None: the one in its options."""
        rates = self.scale.learning_rates.get(arm, [])
        if len(rates) > 1:
            return best_rate([self._curve(arm, self.scale.tuning_seed, rate) for rate in rates])
        return rates[0] if rates else None

    def _run_config(self, arm: str, seed: int, rate: float | None = None) -> PretrainConfig:
        """The options of one run, with learning rate ``rate`` unless None."""
        options = [f"recipe={self.scale.recipe}", f"device={self.config.device}", *self.scale.options]
        options += [*self.config.arms[arm], *self.config.run_options]
        try:
            base = load_config("pretrain", options, PretrainConfig)
        except ConfigError as error:
            raise ConfigError(f"arm {arm} of the study, with the options {' '.join(options)}: {error}") from None
        rate, steps = rate or base.optimizer.lr, self.scale.samples // base.batch.global_batch_size
        require(steps >= 2, f"scales.{self.config.scale}.samples", self.scale.samples, f"two batches or more ({arm})")
        run = replace(
            base,
            seed=seed,
            run_dir=str(self.out_dir / "runs" / re.sub(r"\W+", "_", arm) / f"lr_{rate:g}" / f"seed_{seed}"),
            optimizer=replace(base.optimizer, lr=rate),
            schedule=replace(base.schedule, total_steps=steps),
            training=replace(base.training, evaluate_every_steps=max(1, steps // _EVALUATIONS)),
            checkpoint=replace(base.checkpoint, every_steps=max(1, steps // _CHECKPOINTS)),
        )
        return resolve_if_needed(run)

    def _curve(self, arm: str, seed: int, rate: float | None) -> Curve:
        """The curve of a run, which is run first unless it is finished."""
        config = self._run_config(arm, seed, rate)
        check_run_dir(config, may_extend=False)  # a finished run has no checkpoint to go on from
        path = Path(config.run_dir) / "result.json"
        if not path.exists():
            with spiked(self.scale.spikes.get(arm)):
                self._train(config, path)
        curve = Curve(arm, config.optimizer.lr, seed, **json.loads(path.read_text(encoding="utf-8")))
        print(f"{arm:<30}lr {curve.rate:<10g}seed {seed:<6}held-out MLM loss {curve.final:.4f}", flush=True)
        return curve

    def _train(self, config: PretrainConfig, path: Path) -> None:
        """Run ``pretrain`` to the end with its output in ``log.txt``, and write the curve to ``path``."""
        run_dir, diverged = path.parent, False
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            with open(run_dir / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log):
                finished = pretrain(config, self.world, self.stop)
        except DivergedError:
            finished = diverged = True
        if not finished:
            print("stopped as requested; run the same command to continue")
            sys.exit(EXIT_STOPPED)
        batch = config.batch.global_batch_size
        rows = [row for row in read_rows(run_dir / "metrics.jsonl") if "eval_mlm_loss" in row and row["step"] > 0]
        curve = {
            "samples": [row["step"] * batch for row in rows],
            "losses": [row["eval_mlm_loss"] for row in rows],
            "diverged": diverged,
        }
        replace_file(path, json.dumps(curve).encode())
        (run_dir / RECORD).unlink(missing_ok=True)  # so that without its result.json it is run again
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)


@contextmanager
def spiked(spike: SpikeConfig | None) -> Iterator[None]:
    """Scale the gradient of one step of any optimizer that runs inside, through torch's step hook.

    The step count is read from the optimizer's state, so a resumed run spikes at the same step. The optimizer must
    count its steps there.
    """
    if spike is None:
        yield
        return

    def multiply(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
        if int(optimizer.state[params[0]].get("step", 0)) == spike.step:
            torch._foreach_mul_([param.grad for param in params], spike.factor)

    hook = register_optimizer_step_pre_hook(multiply)
    try:
        yield
    finally:
        hook.remove()


def run_study(config: StudyConfig) -> None:
    """Run what is missing, then write verdicts and figure."""
    silence_transformers()
    require_writable(Path(config.out_dir), "out_dir")
    go_on_without_reader()
    stop = StopRequest().install_handlers()
    with lock_directory(Path(config.out_dir), "out_dir"), open_world(config.device) as world:
        require(world.size == 1, "processes", world.size, "1: a study runs on one device")
        write_study(config, Study(config, world, stop).run(), device_name(world.device))


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
