"""Sentences: nothing but white space is lost, whatever the paragraph; the file gives back what went in."""

import random
import time
from pathlib import Path

import pytest

from data_prep.documents import Document
from data_prep.sentences import read_sentences, split_sentences, write_sentences


def without_space(text: str) -> str:
    return "".join(text.split())


def test_splits() -> None:
    text = 'Dr. Smith paid 3.5 dollars. "Why?" he asked. It was late, e.g. at night.'
    sentences = list(split_sentences(text, "en"))
    assert sentences[0] == "Dr. Smith paid 3.5 dollars."
    assert sentences[-1] == "It was late, e.g. at night."


def test_nothing_is_lost() -> None:
    rng = random.Random(0)
    letters = "abc ABC.!?\"'()[]…。！ \u00a0\u2028éß中文\U0001f600\u0301-—123\t"
    for _ in range(3000):
        text = "".join(rng.choices(letters, k=rng.randint(0, 120)))
        for language in ("en", "de", "zh"):
            assert without_space("".join(split_sentences(text, language))) == without_space(text)


@pytest.mark.parametrize("unit", ["a b ", "word. ", '"a. b ', "x", "Mr. ", "(", "é"])
def test_huge_paragraphs_in_bounded_time(unit: str) -> None:
    text = unit * (2_000_000 // len(unit))
    start = time.perf_counter()
    sentences = list(split_sentences(text, "en"))
    assert time.perf_counter() - start < 10
    assert sum(len(without_space(sentence)) for sentence in sentences) == len(without_space(text))


def test_the_file_gives_back_the_sentences(tmp_path: Path) -> None:
    documents = [
        Document("a", "s", ["One fox. Two bears.", "Three cats."]),
        Document("b", "t", ["Not split. Here.", "One fox."], split=False),
        Document("c", "t", [" \u2028 "]),
        Document("d", "t", ["One fox. One fox."]),
    ]
    counts = write_sentences(documents, tmp_path / "s.txt", "en", drop_repeated=False)
    expected = [["One fox.", "Two bears.", "Three cats."], ["Not split. Here.", "One fox."], ["One fox.", "One fox."]]
    assert list(read_sentences(tmp_path / "s.txt")) == expected
    assert (counts.documents, counts.sentences, counts.paragraphs) == (3, 7, 6)
    assert counts.by_source["t"]["documents"] == 2
    counts = write_sentences(documents, tmp_path / "u.txt", "en", drop_repeated=True)
    assert list(read_sentences(tmp_path / "u.txt")) == [["One fox.", "Two bears.", "Three cats."], ["Not split. Here."]]
    assert counts.repeated_sentences_dropped == 3
