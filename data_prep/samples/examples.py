"""What the report shows of the text itself: documents drawn at random and unknown words. Small for any corpus."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_prep.samples.tokenizer import Vocabulary

DOCUMENTS = 200
"""Documents to draw of the whole corpus, on average."""
CHARACTERS = 200
"""Of each."""
LENGTH_BIN = 8
"""Tokens, of the histogram of sentence lengths."""
_SENTENCES_A_BATCH = 3000  # in which the unknown words are looked up
_WORDS_A_PART, _WORDS = 300, 100  # kept: the most frequent ones
_LONGEST_WORD = 60  # characters


def beginning(document: bytes) -> str:
    """The first characters of a document, UTF-8 with a line feed between sentences."""
    return document[: 4 * CHARACTERS].decode(errors="ignore").replace("\n", " ")[:CHARACTERS]


def unknown_words(vocabulary: Vocabulary, text: bytes, ids: np.ndarray, lengths: np.ndarray) -> Counter[str]:
    """The words of ``text`` (a line feed after each sentence) that are unknown, and how often each occurs.

    ``ids`` (T,) and ``lengths`` (S,): its tokens, and those of each sentence. Of more than 3000 such sentences,
    every n-th is looked at.
    """
    unknown = vocabulary.roles["unk"]
    ends = np.cumsum(lengths)
    found = np.unique(np.searchsorted(ends, np.flatnonzero(ids == unknown), side="right"))
    counts: Counter[str] = Counter()
    if not len(found):
        return counts
    lines = text.split(b"\n")
    sentences = [lines[number].decode() for number in found[:: -(-len(found) // _SENTENCES_A_BATCH)]]
    vocabulary.tokenizer.encode_special_tokens = True
    for sentence, encoding in zip(
        sentences, vocabulary.tokenizer.encode_batch(sentences, add_special_tokens=False), strict=True
    ):
        places = [place for token, place in zip(encoding.ids, encoding.offsets, strict=True) if token == unknown]
        counts.update(sentence[start:stop][:_LONGEST_WORD] for start, stop in places)
    return counts


def examples_of(corpus: str, documents: list[str], unknown: Counter[str]) -> dict[str, Any]:
    """The examples of one text part, as a key of its record."""
    words = dict(sorted(unknown.items(), key=_frequent_first)[:_WORDS_A_PART])
    return {"examples": {"documents": {corpus: documents}, "unknown": words, "looked_up": unknown.total()}}


def take_examples(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Remove the examples from the ``records`` of all parts; return them together, as :func:`examples_of` does."""
    documents: dict[str, list[str]] = {}
    unknown: Counter[str] = Counter()
    looked_up = 0
    for record in records:
        of_part = record.pop("examples", {"documents": {}, "unknown": {}, "looked_up": 0})
        for corpus, texts in of_part["documents"].items():
            documents.setdefault(corpus, []).extend(texts)
        unknown.update(of_part["unknown"])
        looked_up += of_part["looked_up"]
    words = dict(sorted(unknown.items(), key=_frequent_first)[:_WORDS])
    return {"examples": {"documents": documents, "unknown": words, "looked_up": looked_up}}


def _frequent_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
