"""What ``batch_scaling`` found: a row per optimizer and batch size, critical batch sizes, and what they say."""

import math
from dataclasses import asdict
from typing import Any

from bert_pretrain.study.batch_scaling import BatchScaling
from bert_pretrain.study.critical_batch import CriticalBatch, fit_critical_batch
from bert_pretrain.study.curve import Curve
from bert_pretrain.study.page import Row, print_page, write_files
from bert_pretrain.study.scaling_figure import draw_scaling
from bert_pretrain.study.search import best_rate, listed
from bert_pretrain.study.statistics import Difference, compare, holm, mean_of
from bert_pretrain.study.verdict import judge


class Findings:
    """The study's numbers, from all runs that are finished."""

    def __init__(self, study: BatchScaling) -> None:
        self.study, self.target = study, study.target
        self.arms = study.runs.config.chosen_arms
        self.steps = {cell: self._steps(curves) for cell, curves in study.curves.items()}
        cells = [(arm, batch) for arm in self.arms for batch in self._common(arm)]
        self.ratios = _corrected({cell: self._ratio(cell[0], [cell[1]]) for cell in cells})
        self.means = _corrected({arm: self._ratio(arm, self._common(arm)) for arm in dict(cells)})
        self.fits = {arm: self._fit(arm) for arm in self.arms}

    def _steps(self, curves: list[Curve]) -> dict[int, float]:
        """By seed: log of the steps to the target, of the runs that reached it."""
        found = {curve.seed: curve.steps_to(self.target.loss) for curve in curves}
        return {seed: math.log(steps) for seed, steps in found.items() if steps < math.inf}

    def reached(self, arm: str) -> list[int]:
        """The batch sizes at which every run of the arm reached the target."""
        cells = ((batch, self.study.curves.get((arm, batch), [])) for batch in self.target.sizes_of(arm))
        return [batch for batch, runs in cells if runs and len(self.steps[arm, batch]) == len(runs)]

    def _fit(self, arm: str) -> CriticalBatch | None:
        batches = self.reached(arm)
        return fit_critical_batch(batches, [math.exp(mean_of(self.steps[arm, batch].values())) for batch in batches])

    def _common(self, arm: str) -> list[int]:
        """The batch sizes at which no run of the arm and of the baseline failed; none for the baseline."""
        base = self.target.baseline
        return [batch for batch in self.reached(arm) if arm != base and batch in self.reached(base)]

    def _ratio(self, arm: str, batches: list[int]) -> Difference | None:
        """Log of the samples over the baseline's at the same batch size, mean over ``batches``, paired by seed."""
        return compare(self._mean_logs(arm, batches), self._mean_logs(self.target.baseline, batches))

    def _mean_logs(self, arm: str, batches: list[int]) -> dict[int, float]:
        steps = [self.steps[arm, batch] for batch in batches]
        return {seed: mean_of([logs[seed] for logs in steps]) for seed in steps[0]}

    def rows(self) -> list[Row]:
        """One row per arm and batch size that has a run."""
        cells = ((arm, batch) for arm in self.arms for batch in self.target.sizes_of(arm))
        return [self._row(*cell, self.study.curves[cell]) for cell in cells if cell in self.study.curves]

    def _row(self, arm: str, batch: int, runs: list[Curve]) -> Row:
        steps, tried = self.steps[arm, batch], self.study.tried[arm, batch]
        all_reached = len(steps) == len(runs) > 0
        middle = math.exp(mean_of(steps.values())) if all_reached else math.inf
        ratio, p = self.ratios.get((arm, batch), (None, None))
        rate, loss, base = best_rate(tried), f"{self.target.loss:g} nats", self.target.baseline
        shown = runs or [self.study.searched[arm, batch, rate]]
        return {
            "optimizer": arm,
            "batch": batch,
            "peak learning rate": rate,
            "tried": listed(tried),
            "seeds": len(runs),
            "reached": len(steps),
            f"steps to {loss}": significant(middle) if all_reached else None,
            "fewest": significant(math.exp(min(steps.values()))) if steps else None,
            "most": significant(math.exp(max(steps.values()))) if all_reached else None,
            f"samples to {loss}": significant(middle * batch) if all_reached else None,
            f"samples / {base}": factor(ratio.mean) if ratio else None,
            "95 % low": factor(ratio.low) if ratio else None,
            "95 % high": factor(ratio.high) if ratio else None,
            "p (Holm)": None if p is None else float(f"{p:.2g}"),
            "command": shown[0].command,
            "commit": ", ".join(sorted({run.commit for run in shown})),
        }

    def sentences(self) -> list[str]:
        """What was found, in Markdown."""
        found = [self._of_arm(arm) for arm in self.arms if any(name == arm for name, _ in self.steps)]
        return [*found, *self.verdicts()]

    def _of_arm(self, arm: str) -> str:
        """Its critical batch size, its samples over the baseline's, and the runs that did not reach the target."""
        parts, base = [], self.target.baseline
        if fit := self.fits[arm]:
            sizes = self.reached(arm)
            outside = "" if sizes[0] <= fit.batch <= sizes[-1] else ", outside the batch sizes that ran"
            ends = " to ".join(f"{significant(end):,}" for end in (fit.low, fit.high))
            least = f"S_min {significant(fit.least_steps):,} steps"
            parts.append(f"critical batch size {significant(fit.batch):,} (95 %: {ends}{outside}), {least}")
        if arm in self.means:
            (mean, p), sizes = self.means[arm], self._common(arm)
            ends = f"95 %: {factor(mean.low)} to {factor(mean.high)}; p {p:.2g}"
            where = f"mean of {len(sizes)} batch sizes" if len(sizes) > 1 else f"at a batch of {sizes[0]:,}"
            parts.append(f"{factor(mean.mean)} times the samples of {base}, {where} ({ends})")
        failed = []
        for (name, batch), runs in self.study.curves.items():
            if name == arm and batch not in self.reached(arm):
                some = f"{len(runs) - len(self.steps[arm, batch])} of {len(runs)} runs" if runs else "all of the search"
                failed.append(f"{some} at {batch:,}")
        parts += [f"failed: {', '.join(failed)}"] if failed else []
        return f"**{arm}**: {'; '.join(parts)}."

    def verdicts(self) -> list[str]:
        """On the claims: the samples of two arms at the largest batch size of both, if both have been run at it."""
        claims, results, units = [], [], []
        for claim in self.study.runs.config.chosen_claims:
            batch = min(self.target.sizes_of(arm)[-1] for arm in (claim.arm, claim.against))
            if {(claim.arm, batch), (claim.against, batch)} <= set(self.study.curves):
                claims.append(claim)
                results.append({arm: self._log_steps(arm, batch) for arm in (claim.arm, claim.against)})
                units.append(f"times the samples at a batch of {batch:,}")
        verdicts = zip(judge(claims, results), units, strict=True)
        return [verdict.sentence(lambda log: f"{math.exp(log):.2f}", unit) for verdict, unit in verdicts]

    def _log_steps(self, arm: str, batch: int) -> dict[int, float]:
        """By seed: log of the steps to the target, infinite for a run that failed; one such if all of a search did."""
        runs = self.study.curves[arm, batch]
        return {run.seed: math.log(run.steps_to(self.target.loss)) for run in runs} or {-1: math.inf}


def significant(value: float) -> float | int:
    """With three significant digits."""
    if not math.isfinite(value) or value == 0:
        return value
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded >= 100 else rounded


def factor(log: float) -> float:
    """A difference of logarithms as a factor, with two decimals."""
    return round(math.exp(min(log, 700.0)), 2)


def _corrected(found: dict[Any, Difference | None]) -> dict[Any, tuple[Difference, float]]:
    """Those that there are, each with its p-value after Holm."""
    kept = {key: difference for key, difference in found.items() if difference is not None}
    p_values = holm([difference.p for difference in kept.values()])
    return dict(zip(kept, zip(kept.values(), p_values, strict=True), strict=True))


def write_scaling(study: BatchScaling, device: str) -> None:
    """Run the study; after every round of it, write what is finished."""
    for _ in study.rounds():
        if study.curves:
            write_findings(study, device)
    print_page(study.runs.out_dir)


def write_findings(study: BatchScaling, device: str) -> None:
    """Write ``study.md``, ``.html``, ``.json``, ``.csv``, ``.png`` and ``.svg`` into ``out_dir``."""
    config, out_dir, found = study.runs.config, study.runs.out_dir, Findings(study)
    failed = {(arm, batch) for arm, batch in found.steps if batch not in found.reached(arm)}
    chart = draw_scaling(out_dir, config.question, found.target, found.steps, found.fits, found.ratios, failed)
    searched = [
        {"arm": arm, "batch": batch, "rate": rate, "steps": steps, "loss": loss}
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
        f"Steps: to a held-out MLM loss of {target.loss:g} nats; geometric mean, fewest and most of the seeds. Failed: "
        f"not there in {study.scale.samples:,} samples, or {target.give_up_factor:g} times the steps of "
        f"{target.baseline}'s search. Learning rates: searched with another seed until worse ones were on both sides. "
        "Intervals: 95 %, Student's t on logarithms paired by seed, not corrected, without the error of the search. "
        "p: corrected by Holm, over the optimizers, the rows of the table, or the pairs claimed. One that would show: "
        "in 80 % of such studies. Critical batch size: B_crit in S_min (1 + B_crit / batch), where steps are twice "
        "S_min; fitted where no run failed, its interval from the distances to the curve. "
        f"All runs, with the search: {study.cpu_seconds / 3600:.1f} hours of CPU time."
    )
