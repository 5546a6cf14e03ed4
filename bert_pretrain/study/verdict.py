"""Evaluates a study: a table, and a verdict on each of the article's claims.

The result of a run is its held-out MLM loss after the last step. An arm has a mean over its seeds and a spread,
largest minus smallest. A difference of two means counts as an effect only if it exceeds the larger of the two
spreads. A run that diverged has an infinite loss; if two arms have different numbers of such runs, the one with more
is worse.
"""

import math
from dataclasses import dataclass
from typing import Any

from bert_pretrain.errors import require
from bert_pretrain.study.curve import Curve

WORSE, BETTER, SAME = "worse", "better", "same"
RULE = (
    "Loss: held-out MLM loss after the last step, in nats. Spread: largest minus smallest over the seeds. A "
    "difference of two means counts as an effect only if it exceeds the larger of the two spreads."
)


@dataclass
class Claim:
    """The article's result for two arms."""

    arm: str
    """The arm that is compared."""
    against: str
    """The arm that it is compared with."""
    article: str
    """worse, better or same: arm compared with against."""

    def __post_init__(self) -> None:
        allowed = (WORSE, BETTER, SAME)
        require(self.article in allowed, f"claim on {self.arm}: article", self.article, " | ".join(allowed))


@dataclass(frozen=True)
class Verdict:
    """A claim and our result."""

    claim: Claim
    difference: float
    """Mean loss of ``claim.arm`` minus that of ``claim.against``, in nats; infinite or NaN if runs diverged."""
    spread: float
    """The larger of the two arms' spreads."""
    found: str
    """worse, better or same."""

    @property
    def sentence(self) -> str:
        """The verdict as a sentence of Markdown."""
        claim = self.claim
        result = {WORSE: "is worse", BETTER: "is better", SAME: "shows no difference"}[self.found]
        if self.found == claim.article:
            comparison = "as in the article"
        elif self.found == SAME:
            comparison = f"the article's effect ({claim.article}) is not reproduced"
        else:
            comparison = f"the article finds it {'the same' if claim.article == SAME else claim.article}"
        diverged = not math.isfinite(self.difference)
        numbers = "runs diverged" if diverged else f"{self.difference:+.3f} nats, spread {self.spread:.3f}"
        return f"**{claim.arm}** against **{claim.against}**: {result} ({numbers}); {comparison}."


def judge(claim: Claim, curves: dict[str, list[Curve]]) -> Verdict:
    """Compare two arms by the rule above."""
    arm, against = ([curve.final for curve in curves[name]] for name in (claim.arm, claim.against))
    difference = mean(arm) - mean(against)
    larger = max(spread(arm), spread(against))
    more_diverged = sum(map(math.isinf, arm)) - sum(map(math.isinf, against))
    if more_diverged:
        found = WORSE if more_diverged > 0 else BETTER
    elif not abs(difference) > larger:
        found = SAME
    else:
        found = WORSE if difference > 0 else BETTER
    return Verdict(claim, difference, larger, found)


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def spread(values: list[float]) -> float:
    """Largest minus smallest; 0 if all are infinite."""
    low, high = min(values), max(values)
    return 0.0 if low == high else high - low


def table(curves: dict[str, list[Curve]], rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row per arm. ``rates``: the learning rates that were tried for it."""
    rows = []
    for arm, runs in curves.items():
        finals = [curve.final for curve in runs]
        rate, tried = runs[0].rate, rates.get(arm, [])
        edge = len(tried) > 1 and rate in (min(tried), max(tried))
        rows.append(
            {
                "arm": arm,
                "peak learning rate": rate,
                "tried": (", ".join(f"{value:g}" for value in tried) or "-") + (" (best at the edge)" if edge else ""),
                "seeds": len(runs),
                "mean loss": round(mean(finals), 4),
                "lowest": round(min(finals), 4),
                "highest": round(max(finals), 4),
                "diverged": sum(map(math.isinf, finals)),
            }
        )
    return rows


def page(question: str, article: str, rows: list[dict[str, Any]], verdicts: list[Verdict], note: str) -> str:
    """The study as a page of Markdown."""
    columns = list(rows[0])
    lines = [f"# {question}", "", f"The article: {article}", "", *(f"- {verdict.sentence}" for verdict in verdicts)]
    lines += ["", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join([*lines, "", RULE, "", note, "", "![](study.png)", ""])
