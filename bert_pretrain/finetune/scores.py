"""Metrics, in percent. Those of GLUE are scikit-learn's and scipy's, those of tagged words seqeval's.

Those of SQuAD follow its papers (arXiv 1606.05250, 1806.03822) and the rules of its evaluation scripts. torchmetrics
has only SQuAD 1.1: it fails on questions without an answer, and scores answers that are empty once normalised, which
1.1 does not.
"""

import re
import string
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import seqeval.metrics
from scipy.stats import pearsonr, spearmanr
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Scores = dict[str, float]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _correlation(correlate: Callable[..., Any], labels: np.ndarray, predictions: np.ndarray) -> float:
    # Undefined if one side is constant; 0 then, as for the Matthews coefficient.
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


def _known_tag(tag: str) -> str:
    """BILOU's last and unit as the end and single that seqeval knows."""
    return {"L-": "E-", "U-": "S-"}.get(tag[:2], tag[:2]) + tag[2:]


def tag_scores(metrics: list[str], golds: list[list[str]], predictions: list[list[str]]) -> Scores:
    """Each of ``metrics`` in percent, by sentence a tag a word: F1, precision and recall of entities over all types;
    accuracy of tags."""
    known = {name: getattr(seqeval.metrics, f"{name}_score") for name in ("f1", "precision", "recall", "accuracy")}
    golds, predictions = ([[_known_tag(tag) for tag in tags] for tags in each] for each in (golds, predictions))
    with warnings.catch_warnings(category=UndefinedMetricWarning, action="ignore"):  # without an entity: 0
        return {name: 100.0 * float(known[name](golds, predictions)) for name in metrics}


def normalize_answer(answer: str) -> str:
    """SQuAD's normalisation, in this order: lower case, no ASCII punctuation, no articles, single spaces."""
    without_punctuation = answer.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split())


def word_f1(prediction: str, gold: str, unanswerable: bool) -> float:
    """F1 over the bags of normalised words.

    If either bag is empty, SQuAD 2.0 (``unanswerable``) gives 1 if both are and else 0; SQuAD 1.1 always gives 0.
    """
    found = normalize_answer(prediction).split()
    expected = normalize_answer(gold).split()
    if unanswerable and not (found and expected):
        return float(found == expected)
    common = sum((Counter(found) & Counter(expected)).values())
    return 2.0 * common / (len(found) + len(expected)) if common else 0.0


def question_scores(prediction: str, golds: list[str], unanswerable: bool) -> tuple[float, float]:
    """Exact match and F1 of one question, each the best over its gold answers.

    SQuAD 2.0 ignores gold answers that are empty once normalised; a question left with none has no answer.
    """
    if unanswerable:
        golds = [gold for gold in golds if normalize_answer(gold)] or [""]
    return (
        max(float(normalize_answer(prediction) == normalize_answer(gold)) for gold in golds),
        max(word_f1(prediction, gold, unanswerable) for gold in golds),
    )


def squad_scores(predictions: dict[str, str], golds: dict[str, list[str]], unanswerable: bool) -> Scores:
    """Mean exact match and F1 over all questions of ``golds``; a question without a prediction scores 0.

    With ``unanswerable``, also over the questions with an answer (HasAns) and over those without (NoAns).
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
    """The best exact match and F1 over all thresholds on ``null_odds``, and those thresholds, as in SQuAD 2.0.

    ``predictions`` are the answers without a threshold. The lowest threshold answers no question and scores those
    that have no answer. Raising it answers one more question at a time, in the order of their odds.
    """
    keys = sorted(golds, key=lambda key: null_odds[key])
    best = {}
    for number, metric in enumerate(("exact_match", "f1")):
        # Answering a question that has no answer loses its point.
        gains = [
            question_scores(predictions[key], golds[key], True)[number] if any(golds[key]) else -bool(predictions[key])
            for key in keys
        ]
        totals = sum(not any(golds[key]) for key in keys) + np.concatenate([[0.0], np.cumsum(gains)])
        chosen = int(totals.argmax())
        best[f"best_{metric}"] = 100.0 * float(totals[chosen]) / len(keys)
        best[f"best_{metric}_threshold"] = float(null_odds[keys[chosen - 1]]) if chosen else 0.0
    return best
