"""Paragraphs -> sentences, by Wikimedia's ``sentencex`` and an additional rule for quoted speech.

Chosen by measurement on Wikipedia articles and novels (``scripts/bench_sentences.py``): blingfire is slower, splits
within sentences more often and has unmaintained wheels; syntok and pysbd take 15 and 50 times as long. None of them
loses characters. sentencex does not split quoted speech of several sentences; such a sentence is split once more with
its quotes masked.
"""

import re
from collections.abc import Iterator

import sentencex

_LONGEST_PARAGRAPH = 100_000  # characters; limits memory, since splitting keeps several copies
_MARGIN = 20  # characters; most quotes and spaces between two sentences
_QUOTE = re.compile(r"""["“”„«»‘]|['’](?!\w)|(?<!\w)'""")  # but no apostrophe within a word
_SPEECH = re.compile(r"""[.!?…]["”’'»)]*\s+["“„«‘'(]*[^\W\d_a-z]""")  # the end of a sentence and a capital
_OPENING = re.compile(r"""(?:(?<=\s)["“„«‘'(]+|\s)+$""")
_CLOSED = re.compile(r"""["”’'»]\s*$""")


def split_sentences(paragraph: str, language: str) -> Iterator[str]:
    """The sentences of one paragraph, in order. Only white space is changed."""
    pending = ""
    for piece in _bounded(" ".join(paragraph.split())):
        for part in _parts(piece, language):
            if pending and _begins_a_sentence(part, pending):
                yield " ".join(pending.split())
                pending = ""
            pending += part
        if len(pending) > _LONGEST_PARAGRAPH:
            yield " ".join(pending.split())
            pending = ""
    if pending.strip():
        yield " ".join(pending.split())


def _begins_a_sentence(part: str, before: str) -> bool:
    """Whether ``part`` starts a new sentence after ``before``.

    It does not if one of them is punctuation only, or if it begins with a lower-case letter after a closing quote
    (“Why?” he asked) or in text that has capitals (the author of Who Goes There? and others).
    """
    if not _has_words(part) or not _has_words(before):
        return False
    continues = _CLOSED.search(before[-_MARGIN:]) or next(filter(str.isalpha, before[:_MARGIN]), "").isupper()
    return not (part[0].islower() and continues)


def _has_words(text: str) -> bool:
    return any(map(str.isalnum, text))


def _parts(piece: str, language: str) -> Iterator[str]:
    for sentence in _segment(piece, language):
        if _SPEECH.search(sentence) and _QUOTE.search(sentence):
            yield from _speech(sentence, language)
        else:
            yield sentence


def _speech(sentence: str, language: str) -> Iterator[str]:
    """The sentences of quoted speech. An opening quote stays with the sentence after it."""
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
    """By sentencex. Text on which it panics stays whole; long sentences are cut later, by their tokens.

    One such text is known (1.0.32): a wide space before a full stop, which :func:`split_sentences` never passes.
    """
    try:
        return list(sentencex.segment(language, piece))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pyo3: a BaseException that cannot be imported
            raise
        return [piece]


def _bounded(paragraph: str) -> Iterator[str]:
    """Cut a huge paragraph at white space, or anywhere if there is none."""
    start = 0
    while len(paragraph) - start > _LONGEST_PARAGRAPH:
        stop = paragraph.rfind(" ", start + _LONGEST_PARAGRAPH // 2, start + _LONGEST_PARAGRAPH)
        stop = stop if stop > 0 else start + _LONGEST_PARAGRAPH
        yield paragraph[start:stop]
        start = stop
    yield paragraph[start:]
