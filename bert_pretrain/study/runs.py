"""The runs of one study: their options, their directories under ``out_dir/runs``, and their order on one device."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bert_pretrain.config import PretrainConfig
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.shape import resolve_if_needed
from bert_pretrain.model.precision import compute_dtype, dtype_name
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.study.curve import Curve
from bert_pretrain.study.language import write_corpus
from bert_pretrain.study.options import StudyConfig
from bert_pretrain.study.single_run import SingleRun


class Runs:
    """Composes and does the runs of a study, one after the other; finished ones are not repeated."""

    def __init__(self, config: StudyConfig, world: World, stop: StopRequest) -> None:
        self.config, self.world, self.stop = config, world, stop
        self.scale, self.out_dir = config.chosen, Path(config.out_dir)

    def write_corpus(self) -> None:
        """Write the synthetic corpus of the scale, if it has one."""
        if self.scale.corpus is not None:
            write_corpus(self.out_dir / "corpus", self.scale.corpus)

    def words(self, arm: str, more: Sequence[str] = ()) -> list[str]:
        """The options of an arm as words of the command ``pretrain``; those given to the study override all others."""
        ours = [f"recipe={self.scale.recipe}", f"device={self.config.device}", *self.scale.options]
        of_arm = [*self.config.arms[arm], *self.scale.arm_options.get(arm, ())]
        return [*ours, *of_arm, *more, *self.config.run_options]

    def compose(self, arm: str, more: Sequence[str] = ()) -> PretrainConfig:
        """The options of an arm. Raises ``ConfigError`` with the name of the arm."""
        words = self.words(arm, more)
        try:
            return resolve_if_needed(load_config("pretrain", words, PretrainConfig))
        except ConfigError as error:
            raise ConfigError(f"arm {arm} of the study, with the options {' '.join(words)}: {error}") from None

    def curve(
        self, arm: str, base: PretrainConfig, seed: int, rate: float, changes: dict[str, Any], folder: str = ""
    ) -> Curve:
        """The curve of a run, which is run first unless it is finished.

        ``base``: the options of the arm; ``changes``: what is different, by name; ``folder``: of the run, below the
        arm's.
        """
        place = self.out_dir / "runs" / re.sub(r"\W+", "_", arm) / folder / f"lr_{rate:g}" / f"seed_{seed}"
        changes = {**changes, "optimizer.lr": rate, "seed": seed, "run_dir": str(place)}
        if base.precision.compute == "auto":  # a study that goes on elsewhere keeps the type that it began with
            changes["precision.compute"] = dtype_name(compute_dtype("auto", self.world.device))
        words = [*self.words(arm), *(f"{name}={value}" for name, value in changes.items())]
        target = None if self.scale.target is None else self.scale.target.loss
        run = SingleRun(arm, changed(base, changes), words, self.scale.spikes.get(arm), target)
        curve = run.curve(self.world, self.stop)
        name = f"{arm}, batch {curve.batch:,}" if self.scale.target else arm
        print(f"{name:<30}lr {rate:<10g}seed {seed:<6}{_found(curve, target)}", flush=True)
        return curve


def _found(curve: Curve, target: float | None) -> str:
    if target is None or curve.final > target:
        return f"held-out MLM loss {curve.final:.4f}"
    return f"{curve.steps_to(target):,.1f} steps to a held-out MLM loss of {target:g}"


def changed(config: PretrainConfig, changes: dict[str, Any]) -> PretrainConfig:
    """``config`` with other values of some options, by their full names."""
    for name, value in changes.items():
        section, _, option = name.rpartition(".")
        if section:
            config = replace(config, **{section: replace(getattr(config, section), **{option: value})})
        else:
            config = replace(config, **{option: value})
    return config
