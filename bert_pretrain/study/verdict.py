"""The table of a study of last losses, and a verdict on each claim.

The result of a run is its held-out MLM loss after the last step. A difference of two arms counts as an effect if its
p-value, corrected for the number of pairs that the study's claims compare, is below 0.05 (``statistics.py``). Otherwise
the verdict says how large a difference would have shown. A run that diverged has an infinite loss; if an arm has such
runs, what is tested is how many of them there are (Fisher's exact test).
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
    "with 95 % intervals of Student's t for pairs (Welch's without shared seeds), not corrected. p: corrected by Holm "
    "for the number of pairs compared; below 0.05 it counts as an effect. One that would show: what such a test finds "
    "in 80 % of studies with this spread and this number of seeds. Norm outliers: steps, of all seeds, whose gradient "
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
    """worse, better or same: arm compared with against; open: the source does not say."""

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
    """After Holm's correction."""
    failed: str = ""
    """How many runs of each arm diverged or did not reach their target, in words."""

    def sentence(self, show: Callable[[float], str], unit: str) -> str:
        """The verdict as a sentence of Markdown. ``show`` and ``unit``: a difference and its unit in words."""
        claim, difference = self.claim, self.difference
        found, smallest = self.failed, ""
        if difference is not None:
            ends = f"{show(difference.low)} to {show(difference.high)}"
            found = f"{show(difference.mean)} {unit} (95 %: {ends}; p {self.p:.2g})"
            smallest = f"; one of {show(difference.smallest)} would"
        found = f"{found}: no difference shows{smallest}" if self.found == SAME else f"{self.found}, {found}"
        return f"**{claim.arm}** against **{claim.against}**: {found}. {CLAIMS[claim.source].on_two_arms}."


def judge(claims: list[Claim], results: list[Results]) -> list[Verdict]:
    """The verdicts on all claims of a study, each with its results.

    The p-values of all pairs of arms are corrected together; two claims on one pair are one test.
    """
    pairs = [frozenset((claim.arm, claim.against)) for claim in claims]
    differences = [_difference(claim, own, len(set(pairs))) for claim, own in zip(claims, results, strict=True)]
    counts = [
        [_failed(own[arm]) for arm in (claim.arm, claim.against)] for claim, own in zip(claims, results, strict=True)
    ]
    raw = {
        pair: _p_of_counts(*count) if difference is None else difference.p
        for pair, difference, count in zip(pairs, differences, counts, strict=True)
    }
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    verdicts = []
    for claim, pair, difference, (arm, against) in zip(claims, pairs, differences, counts, strict=True):
        p = corrected[pair]
        more = arm[0] * against[1] - against[0] * arm[1] if difference is None else difference.mean
        found = SAME if not p < ALPHA else WORSE if more > 0 else BETTER
        failed = f"{arm[0]} of {arm[1]} runs failed, against {against[0]} of {against[1]} (Fisher's exact p {p:.2g})"
        verdicts.append(Verdict(claim, found, difference, p, failed if arm[0] or against[0] else "too few runs"))
    return verdicts


def _difference(claim: Claim, results: Results, tests: int) -> Difference | None:
    arm, against = results[claim.arm], results[claim.against]
    if any(map(math.isinf, [*arm.values(), *against.values()])):
        return None
    return compare(arm, against, tests)


def _failed(runs: dict[int, float]) -> tuple[int, int]:
    """Runs that failed, and all of an arm."""
    return sum(map(math.isinf, runs.values())), len(runs)


def _p_of_counts(arm: tuple[int, int], against: tuple[int, int]) -> float:
    """Of Fisher's exact test, two-sided."""
    from scipy.stats import fisher_exact  # takes a second to load

    return float(fisher_exact([[failed, runs - failed] for failed, runs in (arm, against)])[1])


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
