"""Rules of cleaning on paragraphs that a person can judge, and duplicates against a plain count of 5-grams."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.options import CleaningConfig, DuplicateConfig
from data_prep.sources.cleaning import Dropped, clean_paragraphs, normalise, why_no_prose
from data_prep.text.duplicates import (
    PartKeys,
    find_repeated_documents,
    find_repeated_sentences,
    merge_repeated_documents,
    part_keys,
    plan_repeats,
    repeated_documents,
    repeated_sentences,
    repeats,
)

PROSE = CleaningConfig("NFC", True, 5, 0.25, 0.35, True, 0, False)
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, und niemand weiß, warum er das immer wieder tut."
ENGLISH = "The quick brown fox jumps over the lazy dog, and nobody knows why he does that again and again."


@pytest.mark.parametrize(
    ("paragraph", "rule"),
    [
        ("The village has a church and two schools.", None),
        ("“Why?”", None),
        ("In 1997, 12,345 people lived there, 3% more than in 1990.", None),
        ("Early life and education", "fragment"),
        ("Population by year", "fragment"),
        ("| a | b | c |", "table_or_rule"),
        ("Chapter I . . . . . . . . 12", "table_or_rule"),
        ("* * * * * * *", "table_or_rule"),
        ("1990 1,234 2,345 1991 3,456 4,567 years total 1992", "figures"),
        ("x = {y + [z]} -> (w) <= /v/ * \\u\\ + q != p ;", "symbols"),
        ("1. 2. 3.", "no_letters"),
        ("Copyright 2020 by the author. All rights reserved.", "boilerplate"),
        ("Please enable JavaScript to see this page.", "boilerplate"),
    ],
)
def test_paragraphs(paragraph: str, rule: str | None) -> None:
    assert why_no_prose(paragraph, PROSE) == rule
    if rule not in (None, "boilerplate"):
        assert why_no_prose(paragraph, replace(PROSE, prose_only=False)) is None


def test_a_long_paragraph_about_a_phrase_is_no_boilerplate() -> None:
    text = "The phrase all rights reserved was once needed in many countries. " * 8
    assert why_no_prose(text.strip(), PROSE) is None


def test_unicode_is_normalised() -> None:
    assert normalise("cafe\u0301\u00a0 \u200bna\u00adive\x07\ufeff ﬁ", "NFC") == "café naive ﬁ"
    assert normalise("ﬁ ①", "NFKC") == "fi 1"
    assert normalise("e\u0301\u200b", "none") == "e\u0301\u200b"


def test_documents_go_as_a_whole_and_all_is_counted() -> None:
    dropped = Dropped()
    rules = replace(PROSE, min_document_words=8, language_filter=True)
    assert clean_paragraphs([ENGLISH, "Heading"], rules, "en", dropped) == [ENGLISH]
    assert clean_paragraphs([GERMAN], rules, "en", dropped) == []
    assert clean_paragraphs([GERMAN], rules, "de", dropped) == [GERMAN]
    assert clean_paragraphs(["It is short."], rules, "en", dropped) == []
    assert dropped.counts == {"fragment": 1, "other_language": 1, "short_document": 1}
    assert dropped.samples["other_language"] == [f"(de) {GERMAN}"]


def write_parts(folder: Path, parts: list[list[list[str]]], sentences_too: bool = False) -> list[PartKeys]:
    rows, document, sentence = [], 0, 0
    for number, documents in enumerate(parts):
        path = folder / f"{number}.keys.npz"
        np.savez(path, **part_keys(documents, DuplicateConfig(True, True, 0.8), sentences_too))  # type: ignore[arg-type]
        rows.append(PartKeys(path, document, sentence, len(documents)))
        document += len(documents)
        sentence += sum(map(len, documents))
    return rows


def jaccard(one: list[str], two: list[str]) -> float:
    """By the sets themselves."""
    grams = []
    for document in (one, two):
        words = " ".join(document).lower().split()
        grams.append({tuple(words[start : start + 5]) for start in range(len(words) - 4)})
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


@pytest.mark.parametrize("keys_per_job", [10**9, 300])
def test_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys_per_job: int) -> None:
    """Changed in a few words a document is dropped, changed in many it is not; the first one stays."""
    monkeypatch.setattr("data_prep.text.duplicates._KEYS_PER_JOB", keys_per_job)
    rng = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(500)])
    originals = [list(rng.choice(words, 400)) for _ in range(30)]

    def changed(document: list[str], count: int) -> list[str]:
        copy = list(document)
        for place in rng.choice(len(copy), count, replace=False):
            copy[place] = "other"
        return copy

    def as_sentences(document: list[str]) -> list[str]:
        return [" ".join(document[start : start + 10]) for start in range(0, len(document), 10)]

    near = [changed(document, 2) for document in originals[:10]]
    far = [changed(document, 60) for document in originals[10:20]]
    equal = [[word.upper() for word in document] for document in originals[20:25]]
    documents = [as_sentences(document) for document in originals + near + far + equal]
    assert all(jaccard(documents[n], documents[30 + n]) > 0.9 for n in range(10))
    assert all(jaccard(documents[10 + n], documents[40 + n]) < 0.6 for n in range(10))
    parts = write_parts(tmp_path, [documents[:13], documents[13:14], [], documents[14:]])
    jobs = plan_repeats(parts, tmp_path, DuplicateConfig(True, True, 0.8), "documents", 55 * 20)
    assert (len(jobs) > 1) == (keys_per_job == 300)
    for job in jobs:
        find_repeated_documents(job)
    counts = merge_repeated_documents(tmp_path, jobs)
    assert repeated_documents(tmp_path).tolist() == [*range(30, 40), *range(50, 55)]
    assert counts == {"exact_duplicates": 5, "near_duplicates": 10}


def test_repeated_sentences_but_for_those_of_dropped_documents(tmp_path: Path) -> None:
    np.save(tmp_path / "repeated.npy", np.array([1]))
    documents = [["a b.", "c d."], ["e f.", "a b."], ["e f.", "C D.", "g h."], ["g h.", "i j."]]
    parts = write_parts(tmp_path, [documents[:2], documents[2:]], sentences_too=True)
    for job in plan_repeats(parts, tmp_path, DuplicateConfig(True, True, 0.8), "sentences", 9):
        find_repeated_sentences(job)
    assert list(repeated_sentences(tmp_path, 0, 9)) == [5, 7]
    assert list(repeated_sentences(tmp_path, 6, 9)) == [7]


def test_repeats_against_a_dictionary() -> None:
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 300, 1000).astype(np.uint64)
    owners = np.sort(rng.integers(0, 400, 1000))
    first: dict[int, int] = {}
    expected = set()
    for key, owner in zip(keys.tolist(), owners.tolist(), strict=True):
        if first.setdefault(key, owner) != owner:
            expected.add((owner, first[key]))
    later, original = repeats(keys, owners)
    assert set(zip(later.tolist(), original.tolist(), strict=True)) == expected
