"""Paragraphs -> sentences, by Wikimedia's ``sentencex``, and a rule for quoted speech.

Chosen by measuring on Wikipedia articles and novels (``scripts/bench_sentences.py``): blingfire is slower, cuts more
often within a sentence, and its wheels are not kept up; syntok and pysbd take 15 and 50 times as long. All keep every
character. Alone, sentencex leaves quoted speech of several sentences whole; such a sentence is split once more with its
quotes out of sight.
"""

import re
from collections.abc import Iterator

import sentencex

_LONGEST_PARAGRAPH = 100_000  # characters: splitting is linear, but keeps several copies of a paragraph
_MARGIN = 20  # characters: as many quotes and spaces may stand between two sentences
_QUOTE = re.compile(r"""["“”„«»‘]|['’](?!\w)|(?<!\w)'""")  # apostrophes within words are none
_SPEECH = re.compile(r"""[.!?…]["”’'»)]*\s+["“„«‘'(]*[^\W\d_a-z]""")  # an end, and a capital
_OPENING = re.compile(r"""(?:(?<=\s)["“„«‘'(]+|\s)+$""")
_CLOSED = re.compile(r"""["”’'»]\s*$""")


def split_sentences(paragraph: str, language: str) -> Iterator[str]:
    """The sentences of one paragraph, in order, nothing but white space left out."""
    waiting = ""
    for piece in _bounded(" ".join(paragraph.split())):
        for part in _parts(piece, language):
            if waiting and _begins_a_sentence(part, waiting):
                yield " ".join(waiting.split())
                waiting = ""
            waiting += part
        if len(waiting) > _LONGEST_PARAGRAPH:
            yield " ".join(waiting.split())
            waiting = ""
    if waiting.strip():
        yield " ".join(waiting.split())


def _begins_a_sentence(part: str, before: str) -> bool:
    """Not a sign alone, and not what follows speech: “Why?” he asked. Nor, but in text that has no capitals at all,
    what begins with a small letter: the author of Who Goes There? and others."""
    if not _has_words(part) or not _has_words(before):
        return False
    goes_on = _CLOSED.search(before[-_MARGIN:]) or next(filter(str.isalpha, before[:_MARGIN]), "").isupper()
    return not (part[0].islower() and goes_on)


def _has_words(text: str) -> bool:
    return any(map(str.isalnum, text))


def _parts(piece: str, language: str) -> Iterator[str]:
    for sentence in _segment(piece, language):
        if _SPEECH.search(sentence) and _QUOTE.search(sentence):
            yield from _speech(sentence, language)
        else:
            yield sentence


def _speech(sentence: str, language: str) -> Iterator[str]:
    """The sentences of quoted speech. An opening quote goes to the sentence that it opens."""
    start = stop = 0
    for part in _segment(_QUOTE.sub(" ", sentence), language):
        stop += len(part)
        tail = sentence[max(start, stop - _MARGIN) : stop]
        end = stop - len(tail) + len(_OPENING.sub("", tail))
        following = sentence[end : end + _MARGIN].lstrip(" \"“„«‘'(")
        if _has_words(sentence[start:end]) and _has_words(following) and not following[0].islower():
            yield sentence[start:end] + " "
            start = end
    yield sentence[start:]


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
