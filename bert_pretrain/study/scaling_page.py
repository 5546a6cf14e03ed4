"""What ``batch_scaling`` found: a row per optimizer and batch size, critical batch sizes, and what they say."""

import math
from dataclasses import asdict

from bert_pretrain.study.batch_scaling import BatchScaling
from bert_pretrain.study.critical_batch import CriticalBatch, fit_critical_batch
from bert_pretrain.study.curve import Curve
from bert_pretrain.study.page import Row, finite, print_page, write_files
from bert_pretrain.study.scaling_figure import draw_scaling
from bert_pretrain.study.search import best_rate, listed
from bert_pretrain.study.statistics import Difference, compare, holm, mean_of
from bert_pretrain.study.verdict import Results, judge


class Findings:
    """The study's numbers, from all runs that are finished."""

    def __init__(self, study: BatchScaling) -> None:
        self.study, self.target = study, study.target
        self.arms = study.runs.config.chosen_arms
        self.steps = {cell: self._steps(curves) for cell, curves in study.curves.items()}
        self.ratios = self._ratios()
        self.fits = {arm: self._fit(arm) for arm in self.arms}

    def _steps(self, curves: list[Curve]) -> dict[int, float]:
        """By seed: log of the steps to the target, of the runs that reached it."""
        found = {curve.seed: curve.steps_to(self.target.loss) for curve in curves}
        return {seed: math.log(steps) for seed, steps in found.items() if steps < math.inf}

    def reached(self, arm: str) -> list[int]:
        """The batch sizes at which every run of the arm reached the target."""
        cells = ((batch, self.study.curves.get((arm, batch), [])) for batch in self.target.batch_sizes)
        return [batch for batch, runs in cells if runs and len(self.steps[arm, batch]) == len(runs)]

    def _fit(self, arm: str) -> CriticalBatch | None:
        batches = self.reached(arm)
        return fit_critical_batch(batches, [math.exp(mean_of(self.steps[arm, batch].values())) for batch in batches])

    def _ratios(self) -> dict[tuple[str, int], tuple[Difference, float]]:
        """Log of the samples over the baseline's at the same batch size, with its p-value after Holm."""
        base, found = self.target.baseline, {}
        tests = (len(self.arms) - 1) * len(self.target.batch_sizes)
        for arm, batch in self.steps:
            if arm != base and batch in self.reached(arm) and batch in self.reached(base):
                difference = compare(self.steps[arm, batch], self.steps[base, batch], tests)
                if difference is not None:
                    found[arm, batch] = difference
        corrected = holm([difference.p for difference in found.values()])
        return dict(zip(found, zip(found.values(), corrected, strict=True), strict=True))

    def rows(self) -> list[Row]:
        """One row per arm and batch size that has a run."""
        cells = ((arm, batch) for arm in self.arms for batch in self.target.batch_sizes)
        return [self._row(*cell, self.study.curves[cell]) for cell in cells if cell in self.study.curves]

    def _row(self, arm: str, batch: int, runs: list[Curve]) -> Row:
        steps, tried = self.steps[arm, batch], self.study.tried[arm, batch]
        all_reached = len(steps) == len(runs) > 0
        middle = math.exp(mean_of(steps.values())) if all_reached else math.inf
        ratio, p = self.ratios.get((arm, batch), (None, math.nan))
        rate = best_rate(tried)
        shown = runs or [self.study.searched[arm, batch, rate]]
        return {
            "optimizer": arm,
            "batch": batch,
            "peak learning rate": rate,
            "tried": listed(tried),
            "n": len(runs),
            "reached": len(steps),
            "steps": significant(middle) if all_reached else "-",
            "lowest": significant(math.exp(min(steps.values()))) if steps else "-",
            "highest": significant(math.exp(max(steps.values()))) if all_reached else "-",
            "samples": significant(middle * batch) if all_reached else "-",
            f"samples / {self.target.baseline}": interval(ratio) if ratio else "-",
            "p (Holm)": f"{p:.2g}" if ratio else "-",
            "command": shown[0].command,
            "commit": ", ".join(sorted({run.commit for run in shown})),
        }

    def sentences(self) -> list[str]:
        """What was found, in Markdown."""
        found = []
        for arm in self.arms:
            missing = [batch for batch in self.target.batch_sizes if (arm, batch) in self.steps]
            missing = [batch for batch in missing if batch not in self.reached(arm)]
            if missing:
                sizes = ", ".join(f"{batch:,}" for batch in missing)
                found.append(f"**{arm}** does not reach the target in every run at a batch of {sizes}.")
            if fit := self.fits[arm]:
                found.append(self._of_fit(arm, fit))
        return [*found, *self.verdicts()]

    def verdicts(self) -> list[str]:
        """On the claims: the samples of two arms at the largest batch size, if both have been run at it."""
        largest = self.target.batch_sizes[-1]
        results: Results = {}
        for (arm, batch), runs in self.study.curves.items():
            if batch == largest:
                steps = {run.seed: run.steps_to(self.target.loss) for run in runs}
                results[arm] = {seed: math.log(found) for seed, found in steps.items()} or {-1: math.inf}
        claims = [claim for claim in self.study.runs.config.chosen_claims if {claim.arm, claim.against} <= set(results)]
        unit = f"times the samples at a batch of {largest:,}"
        return [verdict.sentence(lambda log: f"{math.exp(log):.2f}", unit) for verdict in judge(claims, results)]

    def _of_fit(self, arm: str, fit: CriticalBatch) -> str:
        sizes = self.reached(arm)
        outside = "" if sizes[0] <= fit.batch <= sizes[-1] else ", outside the batch sizes that ran"
        return (
            f"**{arm}** leaves perfect scaling at a batch of {significant(fit.batch)} (95 %: {significant(fit.low)} to "
            f"{significant(fit.high)}{outside}); no batch needs fewer than {significant(fit.least_steps)} steps."
        )


def significant(value: float) -> float | int:
    """With three significant digits."""
    if not math.isfinite(value) or value == 0:
        return value
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded >= 100 else rounded


def interval(difference: Difference) -> str:
    """A difference of logarithms as a factor with its confidence interval."""
    low, middle, high = (math.exp(min(value, 700.0)) for value in (difference.low, difference.mean, difference.high))
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def write_scaling(study: BatchScaling, device: str) -> None:
    """Run the study; after every round of it, write what is finished."""
    for _ in study.rounds():
        if study.curves:
            write_findings(study, device)
    print_page(study.runs.out_dir)


def write_findings(study: BatchScaling, device: str) -> None:
    """Write ``study.md``, ``.html``, ``.json``, ``.csv``, ``.png`` and ``.svg`` into ``out_dir``."""
    config, out_dir, found = study.runs.config, study.runs.out_dir, Findings(study)
    chart = draw_scaling(out_dir, config.question, found.target, found.steps, found.fits, found.ratios)
    searched = [
        {"arm": arm, "batch": batch, "rate": rate, "steps": finite(steps), "loss": finite(loss)}
        for (arm, batch), tried in study.tried.items()
        for rate, (steps, loss) in sorted(tried.items())
    ]
    numbers = {
        "fits": {arm: asdict(fit) for arm, fit in found.fits.items() if fit},
        "searched": searched,
        "cpu_hours": round(study.cpu_seconds / 3600, 2),
        "curves": [asdict(curve) for runs in study.curves.values() for curve in runs],
    }
    write_files(config, out_dir, device, found.rows(), found.sentences(), rule(study), numbers, chart)


def rule(study: BatchScaling) -> str:
    """What the numbers are, and how a run ends."""
    target = study.target
    return (
        f"Steps: to a held-out MLM loss of {target.loss:g} nats, geometric mean over n seeds, lowest and highest. A "
        f"run is given up after {study.scale.samples:,} samples, or {target.give_up_factor:g} times the steps of "
        f"{target.baseline}'s search. Learning rates were searched on a seed of their own until the best had a worse "
        "one on both sides; where none reached the target (n = 0), no other seed was run. Factors of samples: paired "
        "by seed, with 95 % intervals of Student's t on their logarithms; p-values corrected for the number of "
        "comparisons by Holm. Critical batch size: B in S = S_min (1 + B / batch), fitted to the logarithms, with a "
        "95 % interval from the distances to the curve. All runs, with the search: "
        f"{study.cpu_seconds / 3600:.1f} hours of CPU time."
    )
