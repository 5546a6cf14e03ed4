"""What a task is scored by, in percent. GLUE's metrics are scikit-learn's and scipy's.

SQuAD's two are ours, a few lines after its papers (arXiv 1606.05250, 1806.03822) and the rules of its evaluation
programs. torchmetrics has them for 1.1: it fails where a question has no answer, and compares answers that are empty
once normalised, which 1.1 does not.
"""

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Scores = dict[str, float]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _correlation(correlate: Callable[..., Any], labels: np.ndarray, predictions: np.ndarray) -> float:
    # Undefined where one side is constant. Such predictions say nothing, as with Matthews' coefficient, so 0.
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return correlate(labels, predictions).statistic


def sentence_scores(metrics: list[str], labels: np.ndarray, predictions: np.ndarray) -> Scores:
    """Each of ``metrics`` for predictions (N,) against labels (N,), in percent. F1 is that of label 1."""
    known: dict[str, Callable[[], float]] = {
        "accuracy": lambda: accuracy_score(labels, predictions),
        "f1": lambda: f1_score(labels, predictions, zero_division=0.0),
        "matthews": lambda: matthews_corrcoef(labels, predictions),
        "pearson": lambda: _correlation(pearsonr, labels, predictions),
        "spearman": lambda: _correlation(spearmanr, labels, predictions),
    }
    return {name: 100.0 * float(known[name]()) for name in metrics}


def normalised(answer: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single spaces. In this order."""
    without_punctuation = answer.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split())


def exact_match(prediction: str, gold: str) -> float:
    """1 where both are the same, normalised."""
    return float(normalised(prediction) == normalised(gold))


def word_f1(prediction: str, gold: str, unanswerable: bool) -> float:
    """Harmonic mean of precision and recall over words, normalised, with their multiplicity.

    Where one side has no words, SQuAD 2.0 (``unanswerable``) compares the sides; SQuAD 1.1 gives nothing.
    """
    found, right = normalised(prediction).split(), normalised(gold).split()
    if unanswerable and not (found and right):
        return float(found == right)
    common = sum((Counter(found) & Counter(right)).values())
    return 2.0 * common / (len(found) + len(right)) if common else 0.0


def question_scores(prediction: str, golds: list[str], unanswerable: bool) -> tuple[float, float]:
    """Exact match and F1 of one question, each against the gold answer that suits best.

    SQuAD 2.0 passes gold answers over that are empty once normalised; a question left with none has no answer.
    """
    if unanswerable:
        golds = [gold for gold in golds if normalised(gold)] or [""]
    return (
        max(exact_match(prediction, gold) for gold in golds),
        max(word_f1(prediction, gold, unanswerable) for gold in golds),
    )


def squad_scores(predictions: dict[str, str], golds: dict[str, list[str]], unanswerable: bool) -> Scores:
    """Exact match and F1 over all questions of ``golds``; one that is not in ``predictions`` scores 0.

    With ``unanswerable``, also those of the questions that have an answer (HasAns) and of those that have none (NoAns).
    """
    each = {
        key: question_scores(predictions[key], answers, unanswerable) if key in predictions else (0.0, 0.0)
        for key, answers in golds.items()
    }
    groups = {"": list(golds)}
    if unanswerable:
        groups["HasAns_"] = [key for key, answers in golds.items() if any(answers)]
        groups["NoAns_"] = [key for key, answers in golds.items() if not any(answers)]
    scores: Scores = {}
    for group, keys in groups.items():
        if keys:
            exact, f1 = np.array([each[key] for key in keys]).mean(axis=0)
            scores |= {f"{group}exact_match": 100.0 * float(exact), f"{group}f1": 100.0 * float(f1)}
    return scores


def best_threshold(
    predictions: dict[str, str], golds: dict[str, list[str]], null_odds: dict[str, float]
) -> dict[str, float]:
    """The best F1 (and exact match) that any threshold of ``null_odds`` would give, with that threshold.

    As SQuAD 2.0 reports them. ``predictions`` are the answers without a threshold. Answering nothing at all scores the
    questions without an answer; each question that is then answered, in the order of its odds, gains or loses.
    """
    keys = sorted(golds, key=lambda key: null_odds[key])
    best = {}
    for number, metric in enumerate(("exact_match", "f1")):
        # To answer a question that has no answer costs its point for silence.
        gains = [
            question_scores(predictions[key], golds[key], True)[number] if any(golds[key]) else -bool(predictions[key])
            for key in keys
        ]
        totals = sum(not any(golds[key]) for key in keys) + np.concatenate([[0.0], np.cumsum(gains)])
        chosen = int(totals.argmax())
        best[f"best_{metric}"] = 100.0 * float(totals[chosen]) / len(keys)
        best[f"best_{metric}_threshold"] = float(null_odds[keys[chosen - 1]]) if chosen else 0.0
    return best
