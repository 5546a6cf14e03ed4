"""Paragraphs -> sentences, by Wikimedia's ``sentencex`` and rules for what it splits wrongly.

Chosen by sentences counted by hand in ten languages (``scripts/bench_sentences.py``, docs/languages.md). sentencex does
not split quoted speech of several sentences; such a sentence is split once more with its quotes masked. A number or
letter that counts ("2.", "(a)", "Table 3.1.") stays with what follows it.
"""

import re
from collections.abc import Iterator

import sentencex

from data_prep.text.abbreviations import is_abbreviation, is_ordinal

_LONGEST_PARAGRAPH = 100_000  # characters; limits memory, since splitting keeps several copies
_MARGIN = 20  # characters; most quotes and spaces between two sentences
_QUOTE = re.compile(r"""["“”„«»‘]|['’](?!\w)|(?<!\w)'""")  # but no apostrophe within a word
_SPEECH = re.compile(r"""[.!?…]["”’'»)]*\s+["“„«‘'(]*[^\W\d_a-z]""")  # the end of a sentence and a capital
_OPENING = re.compile(r"""(?:(?<=\s)["“„«‘'(]+|\s)+$""")
_CLOSED = re.compile(r"""["”“’'»]\s*$""")
_CLOSED_JAPANESE = re.compile(r"[」』\"'”’)!?.]\s*$")
_LIST_MARK = re.compile(
    r"\(?(?:\d{1,3}|[^\W\d_]|[ivx]{2,4})[.)]\s+"
    r"|(?:[^\W\d_a-z]\w* )?(?:[^\W\d_]\.)?\d{1,3}(?:\.\d{1,3})*\.\s+"  # "2.1. Start", "Table 3.1. Colours"
)
_BRACKETED = re.compile(r"\(\w{1,3}\)")
_YEARS = re.compile(r"\([\d\s–—/-]+\)\W*$")  # alone: "Name. (1942–2018)."
_ENDS = ".!?…:;।؟۔」』”’\"')）"
_LAST_MARK = re.compile(r"(?<=[.!?…])\s+((?:\d{1,3}[.)]|\(\w{1,3}\))\s*)$")
_LAST_WORD = re.compile(r"[^\s(«„“\"]+$")
_SHORT_WORD = 3  # letters; "av. J.-C."
_LONG_WORD = re.compile(r"\W*[^\W\d_]{6,}\.$")  # no abbreviation
_NAME = re.compile(r"\.\.|[_/\\@=]")  # "For...Next", "en_US.UTF-8"
_ADDRESS = re.compile(r"\s*\S+(?:://|@)\S")
_IDEOGRAPHIC_END = re.compile(r"[。！？།༎༔]+[」』”’）)\]]*\s*")
_OPEN, _CLOSE = re.compile(r"[「『“（(\[]"), re.compile(r"[」』”）)\]]")


def split_sentences(paragraph: str, language: str) -> Iterator[str]:
    """The sentences of one paragraph, in order. Only white space is changed."""
    text = " ".join(paragraph.split())
    head = _LIST_MARK.match(text)
    pending = head.group() if head else ""  # sentencex takes "(1) A" for an open quote
    for piece in _bounded(text[len(pending) :]):
        for part in _parts(piece, language):
            sentence, mark = _without_last_mark(pending, language)
            if sentence:
                yield " ".join(sentence.split())
                pending = mark
            elif pending and not _LIST_MARK.fullmatch(pending) and _begins_a_sentence(part, pending, language):
                yield " ".join(pending.split())
                pending = ""
            pending += part
        if len(pending) > _LONGEST_PARAGRAPH:
            yield " ".join(pending.split())
            pending = ""
    if pending.strip():
        yield " ".join(pending.split())


def _without_last_mark(text: str, language: str) -> tuple[str, str]:
    """``text`` up to a list mark at its end, which belongs to the next sentence, and that mark; else empty."""
    last = _LAST_MARK.search(text[-_MARGIN:])
    if last is None:
        return "", ""
    sentence = text[: -len(last.group())]
    if is_abbreviation(sentence[-_MARGIN:].split()[-1], language, last.group(1)):  # "See Ch. 10."
        return "", ""
    return sentence, last.group(1)


def _begins_a_sentence(part: str, before: str, language: str) -> bool:
    """Whether ``part`` starts a new sentence after ``before``.

    It does not if one of them is punctuation or a list mark only, or behind an abbreviation, or within a name, or if it
    begins with a comma, with a lower-case letter after a closing quote (“Why?” he asked) or in text that has capitals
    (the author of Who Goes There? and others), or with a particle after a Japanese quote.
    """
    if not _has_words(part) or not _has_words(before) or part.lstrip()[0] == ",":
        return False
    end = before[-_MARGIN:].rstrip()
    if _CLOSED_JAPANESE.search(end) and "\u3041" <= part[0] <= "\u3096":
        return False
    if end[-1] in "。！？།༎༔":
        return True
    if _YEARS.match(part) or (_BRACKETED.match(part) and end[-1] not in _ENDS):  # "either (a) 犬 or (b) 猫"
        return False
    word = _LAST_WORD.search(end)
    if word and is_abbreviation(word.group(), language, part):
        return False
    if is_ordinal(end, language):
        return False
    if word and before[-1] == "." and _is_one_word(word.group(), part):
        return False
    if _ADDRESS.match(part) or (word and _LONG_WORD.match(word.group())):
        return True
    first = part[:_MARGIN].lstrip(" (-–—")[:1]
    continues = _CLOSED.search(end) or next(filter(str.isalpha, before[:_MARGIN]), "").isupper()
    return not (first.islower() and continues)


def _is_one_word(before: str, part: str) -> bool:
    """Whether ``part`` goes on the word ``before`` and its full stop, without a space: "av. J.-C.", "en_US.UTF-8"."""
    word = before + part[:_MARGIN].partition(" ")[0]
    is_name = len(before) <= _SHORT_WORD or "." in before[:-1] or bool(_NAME.search(word))
    return part[0] == "-" or (part[0].isalnum() and is_name)


def _has_words(text: str) -> bool:
    return any(map(str.isalnum, text))


def _parts(piece: str, language: str) -> Iterator[str]:
    for sentence in _ideographic(_segment(piece, language)):
        if _SPEECH.search(sentence) and _QUOTE.search(sentence):
            yield from _speech(sentence, language)
        else:
            yield sentence


def _ideographic(sentences: list[str]) -> Iterator[str]:
    """Split also at each ideographic or Tibetan full stop outside quotes and brackets."""
    for sentence in sentences:
        start = depth = counted = 0
        for end in _IDEOGRAPHIC_END.finditer(sentence):
            passed, counted = sentence[counted : end.end()], end.end()
            depth += len(_OPEN.findall(passed)) - len(_CLOSE.findall(passed))
            if depth <= 0:
                yield sentence[start:counted]
                start, depth = counted, 0
        yield sentence[start:]


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
