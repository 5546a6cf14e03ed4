"""Sentence splitting: only white space is lost, whatever the paragraph."""

import random

import pytest

from data_prep.text import sentences
from data_prep.text.sentences import split_sentences


def without_space(text: str) -> str:
    return "".join(text.split())


def test_splits() -> None:
    text = 'Dr. Smith paid 3.5 dollars. "Why?" he asked. It was late, e.g. at night.'
    sentences = list(split_sentences(text, "en"))
    assert sentences[0] == "Dr. Smith paid 3.5 dollars."
    assert sentences[-1] == "It was late, e.g. at night."


@pytest.mark.parametrize(
    "sentences",
    [
        ["“It is late.", "He went.” he said."],
        ["He said “Go.", "Now.”", "Nobody came.", "“Why?", "I am Dr. Smith,” said he."],
        ['"One.', 'Two."', "Three."],
        ["I met him ‘Now.", "Then.’", "And I don’t.", "It’s Tom’s."],
        ['"Why?" he asked.', '"No."', "She left."],
        ["“What? no!” she cried."],
        ["It is so (see there. )"],
        ["Well ...", "So."],
        ['It is "the purest form.".', "So he said."],
        ["“Ah! my dear,” said he.", "He wrote Who Goes There? and others, e.g. this one.", "So."],
        ["is it late?", "it is early.", "he went."],
        ["Bufo spp. toads hunt."],
        ["„Ja.", "Nein!“", "Er ging."],
    ],
)
def test_speech(sentences: list[str]) -> None:
    """Quoted speech of several sentences is split, but not before a lower-case letter or punctuation alone."""
    assert list(split_sentences(" ".join(sentences), "en")) == sentences


def test_nothing_is_lost() -> None:
    rng = random.Random(0)
    letters = "abc ABC.!?\"'“”‘’()[]…。！ \u00a0\u2028éß中文\U0001f600\u0301-—123\t"
    for _ in range(3000):
        text = "".join(rng.choices(letters, k=rng.randint(0, 120)))
        for language in ("en", "de", "zh"):
            assert without_space("".join(split_sentences(text, language))) == without_space(text)


@pytest.mark.parametrize("unit", ["a b ", "word. ", '"a. b ', '"A. B ', "“a. b. ", '. "', "x", "Mr. ", "(", "é"])
def test_huge_paragraphs_take_linear_work(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded pieces are passed to sentencex, and no text more than twice."""
    sizes: list[int] = []

    def segment(piece: str, language: str) -> list[str]:
        sizes.append(len(piece))
        return segment_unchanged(piece, language)

    segment_unchanged = sentences._segment
    monkeypatch.setattr(sentences, "_segment", segment)
    text = unit * (500_000 // len(unit))
    found = list(split_sentences(text, "en"))
    assert max(sizes) <= 100_000
    assert sum(sizes) <= 2 * len(text) + len(found)
    assert sum(len(without_space(sentence)) for sentence in found) == len(without_space(text))
