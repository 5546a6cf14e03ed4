"""Paragraphs -> sentences, by Wikimedia's ``sentencex``.

Chosen by trying four libraries on Wikipedia articles and novels, one core: sentencex 40 to 70 MB/s, blingfire 10
to 15 (its wheels are not kept up), syntok 0.6 to 0.9, pysbd 0.2 and minutes for one paragraph of 460 KB. All keep
every character. sentencex and blingfire differ in 1 of 8 paragraphs of Wikipedia, mostly over what follows a quote;
sentencex leaves quoted speech of several sentences whole, and sets "[citation needed]" apart.
"""

from collections.abc import Iterator

import sentencex

_LONGEST_PARAGRAPH = 100_000  # characters: splitting is linear, but keeps several copies of a paragraph


def split_sentences(paragraph: str, language: str) -> Iterator[str]:
    """The sentences of one paragraph, in order, nothing but white space left out."""
    for piece in _bounded(" ".join(paragraph.split())):
        for sentence in _segment(piece, language):
            text = " ".join(sentence.split())
            if text:
                yield text


def _segment(piece: str, language: str) -> list[str]:
    """sentencex panics on some text (1.0.32: a wide space before a full stop, which never comes here); should there
    be other such text, it stays whole, since long sentences are cut by their tokens later."""
    try:
        return list(sentencex.segment(language, piece))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pyo3; derived from BaseException, and not importable
            raise
        return [piece]


def _bounded(paragraph: str) -> Iterator[str]:
    """Cut a huge paragraph at white space, or anywhere where there is none."""
    start = 0
    while len(paragraph) - start > _LONGEST_PARAGRAPH:
        stop = paragraph.rfind(" ", start + _LONGEST_PARAGRAPH // 2, start + _LONGEST_PARAGRAPH)
        stop = stop if stop > 0 else start + _LONGEST_PARAGRAPH
        yield paragraph[start:stop]
        start = stop
    yield paragraph[start:]
