"""The cleaning rules on example paragraphs, and duplicates against an exact comparison of 5-grams."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.options import CleaningConfig, DuplicateConfig
from data_prep.sources.cleaning import _INVISIBLE, Dropped, clean_paragraphs, normalise, rejected_as, single_spaced
from data_prep.text.duplicates import (
    TextPart,
    divide_keys,
    find_repeated_documents,
    find_repeated_sentences,
    merge_repeated_documents,
    part_keys,
    repeated_documents,
    repeated_sentences,
    repeats,
)

PROSE = CleaningConfig("NFC", True, 5, 0.25, 0.35, True, 0, False)
PROSE_OFF = replace(PROSE, prose_only=False, drop_boilerplate=False)
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
        ("Name | Age | Place of birth of all of them", "table_or_rule"),
        ("He waited..... and then the whole long story went on for many words, as it should.", None),
        ("The inequality says that |x + y| is never more than |x| and |y| together.", None),
        ("1990 1,234 2,345 1991 3,456 4,567 years total 1992", "figures"),
        ("x = {y + [z]} -> (w) <= /v/ * \\u\\ + q != p ;", "symbols"),
        ("1. 2. 3.", "no_letters"),
        ("Copyright 2020 by the author. All rights reserved.", "boilerplate"),
        ("Please enable JavaScript to see this page.", "boilerplate"),
        ("हिन्दी भारत की एक प्रमुख भाषा है और करोड़ों लोग इसे बोलते हैं", None),  # its vowel signs are marks
        ("यह किताब अच्छी है।", None),
        ("今天天气很好我们去公园散步了", None),  # 14 letters
        ("目录与附录", "fragment"),
        ("好的。", None),
        ("ภาษาไทยเป็นภาษาที่ใช้กันทั่วประเทศไทย", None),
        ("هل قرأت هذا؟", None),
        ("བོད་ཡིག།", None),
        ("ቤት ነው፧", None),
        ("ቤት ነው።", None),
        ("ما اسمك؟", None),
        ("यह क्या है॥", None),
        ("Սա տուն է։", None),
        ("Πού είναι;", None),
        ("«Πού είναι\u037e»", None),  # the Greek question mark, which NFC replaces by a semicolon
        ("Πού είναι", "fragment"),
        ("Where is it;", "fragment"),
        ("The angle α;", "fragment"),
    ],
)
def test_paragraphs(paragraph: str, rule: str | None) -> None:
    assert rejected_as(paragraph, PROSE) == rule
    if rule not in (None, "boilerplate"):
        assert rejected_as(paragraph, replace(PROSE, prose_only=False)) is None


def test_what_normalise_removes_is_not_printable() -> None:
    """``normalise`` leaves text alone that is printable and has single spaces."""
    every = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    changed = [sign for sign in every if sign == " " or single_spaced(_INVISIBLE.sub("", f"a{sign}b")) != f"a{sign}b"]
    assert [sign for sign in changed if sign.isprintable()] == [" "]


def test_a_long_paragraph_with_such_a_phrase_is_not_boilerplate() -> None:
    text = "The phrase all rights reserved was once needed in many countries. " * 8
    assert rejected_as(text.strip(), PROSE) is None


def test_unicode_is_normalised() -> None:
    assert normalise("Πού\u037e", "NFC") == "Πού;"
    assert clean_paragraphs(["Cafe\u0301  au", "lait.", " "], PROSE_OFF, "fr", Dropped()) == ["Café au", "lait."]
    assert clean_paragraphs(["", "  "], PROSE_OFF, "fr", Dropped()) == []
    assert normalise("cafe\u0301\u00a0 \u200bna\u00adive\x07\ufeff ﬁ", "NFC") == "café naive ﬁ"
    assert normalise("ﬁ ①", "NFKC") == "fi 1"
    assert normalise("e\u0301\u200b", "none") == "e\u0301\u200b"
    persian = "می\u200cخواهم"  # the joiner is part of the word
    assert normalise(f"{persian} a\u200cb", "NFC") == f"{persian} ab"
    assert normalise("a\u2067\u05d0\u05d1\u2069 \u061cb\u206a", "NFC") == "a\u05d0\u05d1 b"  # marks of direction
    assert normalise("👩\u200d💻 ❤\ufe0f\u200d🔥", "NFC") == "👩\u200d💻 ❤\ufe0f\u200d🔥"


def test_whole_documents_are_dropped_and_counted() -> None:
    dropped = Dropped()
    rules = replace(PROSE, min_document_words=8, language_filter=True)
    assert clean_paragraphs([ENGLISH, "Heading"], rules, "en", dropped) == [ENGLISH]
    assert clean_paragraphs([GERMAN], rules, "en", dropped) == []
    assert clean_paragraphs([GERMAN], rules, "de", dropped) == [GERMAN]
    assert clean_paragraphs(["It is short."], rules, "en", dropped) == []
    assert dropped.counts == {"fragment": 1, "other_language": 1, "short_document": 1}
    assert dropped.samples["other_language"] == [f"(de) {GERMAN}"]


def write_parts(folder: Path, parts: list[list[list[str]]], sentences_too: bool = False) -> list[TextPart]:
    rows, document, sentence = [], 0, 0
    for number, documents in enumerate(parts):
        path = folder / f"{number}.keys.npz"
        np.savez(path, **part_keys(documents, DuplicateConfig(True, True, 0.8), sentences_too))  # type: ignore[arg-type]
        sentences = sum(map(len, documents))
        rows.append(TextPart(folder / f"{number}.txt", "corpus", document, sentence, len(documents), sentences, 0))
        document += len(documents)
        sentence += sentences
    return rows


def jaccard(one: list[str], two: list[str]) -> float:
    """Computed from the sets of 5-grams."""
    grams = []
    for document in (one, two):
        words = " ".join(document).lower().split()
        grams.append({tuple(words[start : start + 5]) for start in range(len(words) - 4)})
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


@pytest.mark.parametrize("keys_per_share", [10**9, 300])
def test_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys_per_share: int) -> None:
    """A copy with a few changed words is dropped, one with many is kept; the first document is kept."""
    monkeypatch.setattr("data_prep.text.duplicates._KEYS_PER_SHARE", keys_per_share)
    monkeypatch.setattr("data_prep.text.duplicates._KEYS_TO_SPARE", 0)
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
    shares = divide_keys(parts, tmp_path, 55 * 20)
    assert (len(shares) > 1) == (keys_per_share == 300)
    for share in shares:
        find_repeated_documents(share, 0.8)
    counts = merge_repeated_documents(tmp_path)
    assert repeated_documents(tmp_path).tolist() == [*range(30, 40), *range(50, 55)]
    assert counts == {"exact_duplicates": 5, "near_duplicates": 10}


def test_near_duplicates_in_a_script_without_spaces(tmp_path: Path) -> None:
    """As above for Chinese letters; 3 changed of 400 change at most 15 of 396 5-grams."""
    rng = np.random.default_rng(0)
    originals = ["".join(map(chr, rng.integers(0x4E00, 0x5000, 400))) for _ in range(20)]
    near = [text[:50] + "龍" + text[51:200] + "龍" + text[201:350] + "龍" + text[351:] for text in originals]
    far = ["".join(rng.permutation(list(text))) for text in originals]
    parts = write_parts(tmp_path, [[[text] for text in originals + near + far]])
    for share in divide_keys(parts, tmp_path, 60 * 20):
        find_repeated_documents(share, 0.8)
    merge_repeated_documents(tmp_path)
    assert repeated_documents(tmp_path).tolist() == list(range(20, 40))


def test_repeated_sentences_are_not_counted_in_dropped_documents(tmp_path: Path) -> None:
    np.save(tmp_path / "repeated.npy", np.array([1]))
    documents = [["a b.", "c d."], ["e f.", "a b."], ["e f.", "C D.", "g h."], ["g h.", "i j."]]
    parts = write_parts(tmp_path, [documents[:2], documents[2:]], sentences_too=True)
    for share in divide_keys(parts, tmp_path, 9):
        find_repeated_sentences(share)
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
