"""Metrics against worked examples and textbook formulas."""

import math

import numpy as np
import pytest

from bert_pretrain.finetune.scores import best_threshold, normalize_answer, sentence_scores, squad_scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,", "cat"),
        ("a an the", ""),
        ("An apple a day", "apple day"),
        ("Theatre", "theatre"),  # an article is a whole word, not a prefix
        ("U.S.A.", "usa"),  # punctuation is removed first, which joins the letters
        ("the-cat", "thecat"),
        ("it's the\tbest!", "its best"),
        ("50\N{EN DASH}60", "50\N{EN DASH}60"),  # ASCII punctuation only
        (
            "\N{RIGHT SINGLE QUOTATION MARK}a\N{RIGHT SINGLE QUOTATION MARK}",
            "\N{RIGHT SINGLE QUOTATION MARK} \N{RIGHT SINGLE QUOTATION MARK}",
        ),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_squad_does(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("the Denver Broncos", ["Denver Broncos"], 100.0, 100.0),
        ("Denver", ["Denver Broncos"], 0.0, 100 * 2 / 3),  # precision 1, recall 1/2
        ("Denver", ["Carolina", "Denver Broncos", "Denver"], 100.0, 100.0),  # the best gold answer counts
        ("in Denver city", ["Denver Broncos", "old Denver city"], 0.0, 100 * 2 / 3),  # 1/3, 1/2; then 2/3, 2/3
        ("cat cat", ["cat dog"], 0.0, 50.0),  # a bag: the second "cat" has no match
        ("", ["cat"], 0.0, 0.0),
        ("dog", ["cat"], 0.0, 0.0),
        ("the", ["a"], 100.0, 0.0),  # SQuAD 1.1: two empty answers match exactly, but F1 is 0
    ],
)
def test_squad_1_worked_examples(prediction: str, golds: list[str], exact: float, f1: float) -> None:
    scores = squad_scores({"q": prediction}, {"q": golds}, unanswerable=False)
    assert scores == pytest.approx({"exact_match": exact, "f1": f1})


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("", [], 100.0, 100.0),
        ("cat", [], 0.0, 0.0),
        ("", ["cat"], 0.0, 0.0),
        ("the", [], 100.0, 100.0),  # empty once normalised
        ("", ["the", "cat"], 0.0, 0.0),  # SQuAD 2.0 ignores "the", which is empty once normalised
        ("a", ["the"], 100.0, 100.0),
    ],
)
def test_squad_2_worked_examples(prediction: str, golds: list[str], exact: float, f1: float) -> None:
    scores = squad_scores({"q": prediction}, {"q": golds}, unanswerable=True)
    assert (scores["exact_match"], scores["f1"]) == (exact, f1)


def test_squad_scores_are_means_over_questions_and_a_missing_prediction_scores_zero() -> None:
    golds = {"a": ["cat"], "b": ["black cat"], "c": ["dog"], "d": []}
    predictions = {"a": "cat", "b": "cat", "d": "mouse"}
    scores = squad_scores(predictions, golds, unanswerable=True)
    assert scores == pytest.approx(
        {
            "exact_match": 25.0,
            "f1": 100 * (1 + 2 / 3) / 4,
            "HasAns_exact_match": 100 / 3,
            "HasAns_f1": 100 * (1 + 2 / 3) / 3,
            "NoAns_exact_match": 0.0,
            "NoAns_f1": 0.0,
        }
    )


def test_best_threshold_worked_example() -> None:
    """By odds: b is right (+1), c wrong (0), d has no answer (-1), a is partly right (+2/3), e has none (-1)."""
    golds = {"a": ["black cat"], "b": ["cat"], "c": ["dog"], "d": [], "e": []}
    spans = {"a": "cat", "b": "cat", "c": "cow", "d": "cow", "e": "cow"}
    odds = {"b": -3.0, "c": -2.0, "d": -1.0, "a": 0.5, "e": 2.0}
    best = best_threshold(spans, golds, odds)
    assert best["best_f1"] == pytest.approx(100 * 3 / 5)  # answer b alone: 3 points with d and e; up to a: 2 + 2/3
    assert best["best_f1_threshold"] == -3.0
    assert best["best_exact_match"] == 60.0
    for threshold in (-4.0, *odds.values()):  # no threshold is better
        answered = {key: spans[key] if odds[key] <= threshold else "" for key in spans}
        assert squad_scores(answered, golds, unanswerable=True)["f1"] <= best["best_f1"] + 1e-9


def test_accuracy_f1_and_matthews_match_their_formulas() -> None:
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 1, 0, 1])
    guesses = np.array([1, 1, 0, 1, 0, 1, 0, 1, 1, 0])
    tp, fp, fn, tn = 4, 2, 2, 2
    scores = sentence_scores(["accuracy", "f1", "matthews"], labels, guesses)
    assert scores["accuracy"] == pytest.approx(100 * (tp + tn) / 10)
    assert scores["f1"] == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores["matthews"] == pytest.approx(100 * (tp * tn - fp * fn) / root)


def test_correlations_match_numpy_and_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 26, 300) / 5.0  # STS-B's have ties
    guesses = np.round(labels + rng.normal(0, 1.0, 300), 1)
    scores = sentence_scores(["pearson", "spearman"], labels, guesses)
    assert scores["pearson"] == pytest.approx(100 * np.corrcoef(labels, guesses)[0, 1])
    ranks = pandas.DataFrame({"a": labels, "b": guesses}).rank()
    assert scores["spearman"] == pytest.approx(100 * np.corrcoef(ranks["a"], ranks["b"])[0, 1])


def test_constant_predictions_score_zero() -> None:
    same = np.zeros(4)
    assert sentence_scores(["matthews", "f1"], np.array([0, 1, 1, 0]), same) == {"matthews": 0.0, "f1": 0.0}
    assert sentence_scores(["pearson", "spearman"], np.array([0.0, 1.0, 5.0, 2.0]), same) == {
        "pearson": 0.0,
        "spearman": 0.0,
    }
