"""The table of a study of last losses, and a verdict on each claim.

The result of a run is its held-out MLM loss after the last step. A difference of two arms counts as an effect if its
p-value, corrected for the number of the study's claims, is below 0.05 (``statistics.py``). Otherwise the verdict says
how large a difference would have shown. A run that diverged has an infinite loss; if two arms have different numbers
of such runs, the one with more is worse.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bert_pretrain.errors import require, require_choice
from bert_pretrain.study.claims import CLAIMS
from bert_pretrain.study.curve import OUTLIER, Curve
from bert_pretrain.study.search import Cost, listed
from bert_pretrain.study.statistics import ALPHA, Difference, compare, holm

WORSE, BETTER, SAME = "worse", "better", "same"
Results = dict[str, dict[int, float]]
"""By arm and seed: less is better, infinite for a run that diverged or did not reach its target."""
RULE = (
    "Loss: held-out MLM loss after the last step, in nats. Differences: means over the seeds that both arms share, "
    "with 95 % intervals of Student's t for pairs (Welch's without shared seeds). p: corrected for the number of "
    "claims by Holm; below 0.05 it counts as an effect. The smallest effect that would show: what such a test finds in "
    "80 % of studies with this spread and this number of seeds. Norm outliers: steps, of all seeds, whose gradient "
    f"norm is above {OUTLIER} times the median of the run, an injected spike included."
)


@dataclass
class Claim:
    """What a source says about two arms."""

    arm: str
    """The arm that is compared."""
    against: str
    """The arm that it is compared with."""
    source: str
    """The claim's name in bert_pretrain/study/claims.py."""
    expects: str
    """worse, better or same: arm compared with against."""

    def __post_init__(self) -> None:
        name = f"claim on {self.arm}"
        require_choice(f"{name}: source", self.source, CLAIMS)
        allowed = CLAIMS[self.source].results
        require(self.expects in allowed, f"{name}: expects", self.expects, f"{', '.join(allowed)} of {self.source}")


@dataclass(frozen=True)
class Verdict:
    """A claim and our result."""

    claim: Claim
    found: str
    """worse, better or same."""
    difference: Difference | None
    """Of ``claim.arm`` to ``claim.against``; None if runs diverged, or there are too few."""
    p: float
    """After Holm's correction; NaN without a difference."""

    def sentence(self, show: Callable[[float], str], unit: str) -> str:
        """The verdict as a sentence of Markdown. ``show`` and ``unit``: a difference and its unit in words."""
        claim = self.claim
        source, results = CLAIMS[claim.source].source, CLAIMS[claim.source].results
        begin = source[0].upper() + source[1:]
        head = f"**{claim.arm}** against **{claim.against}**: "
        if self.difference is None:
            found = {SAME: "too few runs to compare", WORSE: "worse: more runs failed", BETTER: "better: fewer failed"}
            return f"{head}{found[self.found]}. {begin}: {claim.expects}."
        ends = f"{show(self.difference.low)} to {show(self.difference.high)}"
        numbers = f"{show(self.difference.mean)} {unit} (95 %: {ends}; p {self.p:.2g})"
        smallest = f"{show(self.difference.smallest)} {unit}"
        if claim.expects == SAME and self.found == SAME:
            return f"{head}{numbers}. {begin} claims no difference; here none shows, and one of {smallest} would."
        if claim.expects == SAME and self.found not in results:
            return f"{head}{self.found}, {numbers}. {begin} claims no difference; here there is one."
        if self.found == SAME:
            return (
                f"{head}{numbers}: too small to see at this scale; the smallest effect that would show is {smallest}. "
                f"{begin}: {claim.expects}."
            )
        return f"{head}{self.found}, {numbers}; {'as' if self.found in results else 'not as'} {source} has it."


def judge(claims: list[Claim], results: Results) -> list[Verdict]:
    """The verdicts on all claims of a study, whose p-values are corrected together."""
    differences = [_difference(claim, results, len(claims)) for claim in claims]
    corrected = iter(holm([difference.p for difference in differences if difference]))
    verdicts = []
    for claim, difference in zip(claims, differences, strict=True):
        if difference is None:
            failed = [sum(map(math.isinf, results[arm].values())) for arm in (claim.arm, claim.against)]
            found = SAME if failed[0] == failed[1] else WORSE if failed[0] > failed[1] else BETTER
            verdicts.append(Verdict(claim, found, None, math.nan))
        else:
            p = next(corrected)
            found = SAME if not p < ALPHA else WORSE if difference.mean > 0 else BETTER
            verdicts.append(Verdict(claim, found, difference, p))
    return verdicts


def _difference(claim: Claim, results: Results, tests: int) -> Difference | None:
    arm, against = results[claim.arm], results[claim.against]
    if any(map(math.isinf, [*arm.values(), *against.values()])):
        return None
    return compare(arm, against, tests)


def in_nats(value: float) -> str:
    """A difference of losses, with its sign."""
    return f"{value:+.3f}"


def last_losses(curves: dict[str, list[Curve]]) -> Results:
    """By arm and seed: the loss after the last step."""
    return {arm: {run.seed: run.final for run in runs} for arm, runs in curves.items()}


def table(curves: dict[str, list[Curve]], tried: dict[str, dict[float, Cost]]) -> list[dict[str, Any]]:
    """One row per arm. ``tried``: the learning rates that were searched for it."""
    rows = []
    for arm, runs in curves.items():
        finals = [curve.final for curve in runs]
        rows.append(
            {
                "arm": arm,
                "peak learning rate": runs[0].rate,
                "tried": listed(tried.get(arm, {})),
                "n": len(runs),
                "mean loss": round(sum(finals) / len(finals), 4),
                "lowest": round(min(finals), 4),
                "highest": round(max(finals), 4),
                "diverged": sum(map(math.isinf, finals)),
                "norm outliers": f"{sum(run.outliers for run in runs)} of {sum(run.norms for run in runs)}",
                "command": runs[0].command,
                "commit": ", ".join(sorted({run.commit for run in runs})),
            }
        )
    return rows
