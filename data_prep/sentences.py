"""Documents -> sentences, by Wikimedia's ``sentencex``, written one a line with a blank line between documents.

Chosen by trying four libraries on Wikipedia articles and novels, one core: sentencex 40 to 70 MB/s, blingfire 10
to 15 (its wheels are not kept up), syntok 0.6 to 0.9, pysbd 0.2 and minutes for one paragraph of 460 KB. All keep
every character. sentencex and blingfire differ in 1 of 8 paragraphs of Wikipedia, mostly over what follows a quote;
sentencex leaves quoted speech of several sentences whole, and sets "[citation needed]" apart.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sentencex

from data_prep.documents import Document

_LONGEST_PARAGRAPH = 100_000  # characters: splitting is linear, but keeps several copies of a paragraph


@dataclass
class SentenceCounts:
    """What the sentence stage saw. ``by_source`` holds documents and characters of each source."""

    documents: int = 0
    paragraphs: int = 0
    sentences: int = 0
    characters: int = 0
    repeated_sentences_dropped: int = 0
    documents_dropped_as_all_repeated: int = 0
    by_source: dict[str, dict[str, int]] = field(default_factory=dict)


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


def write_sentences(documents: Iterable[Document], path: Path, language: str, drop_repeated: bool) -> SentenceCounts:
    """Split all documents into ``path``: a sentence a line, a blank line after each document.

    With ``drop_repeated`` a sentence that came before, anywhere, is left out and counted.
    """
    counts = SentenceCounts()
    seen: set[str] = set()
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            sentences = _document_sentences(document, language)
            counts.paragraphs += len(document.paragraphs)
            if drop_repeated:
                fresh = [sentence for sentence in dict.fromkeys(sentences) if sentence not in seen]
                seen.update(fresh)
                counts.repeated_sentences_dropped += len(sentences) - len(fresh)
                counts.documents_dropped_as_all_repeated += not fresh
                sentences = fresh
            if not sentences:
                continue
            file.write("\n".join(sentences))
            file.write("\n\n")
            characters = sum(map(len, sentences))
            counts.documents += 1
            counts.sentences += len(sentences)
            counts.characters += characters
            source = counts.by_source.setdefault(document.source, {"documents": 0, "characters": 0})
            source["documents"] += 1
            source["characters"] += characters
    return counts


def _document_sentences(document: Document, language: str) -> list[str]:
    if not document.split:
        return document.paragraphs
    return [sentence for paragraph in document.paragraphs for sentence in split_sentences(paragraph, language)]


def read_sentences(path: Path) -> Iterator[list[str]]:
    """The documents of a file of :func:`write_sentences`, each a list of sentences."""
    sentences: list[str] = []
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            text = line.rstrip("\n")
            if text:
                sentences.append(text)
            elif sentences:
                yield sentences
                sentences = []
    if sentences:
        yield sentences
