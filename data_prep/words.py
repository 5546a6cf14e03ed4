"""Token ids of sentences, exactly those of the ``tokenizers`` library, several times as fast: a cache of words.

BERT's normalizer works character by character and its pre-tokenizer splits at every space, so the ids of a text are
those of the pieces between its spaces, one after the other. Each such piece is encoded once and looked up from then
on. Of a new piece in ASCII the words and signs are looked up, too, so that "house," costs nothing where "house" and
"," are known. What is not BERT's normalizer and pre-tokenizer, or has added tokens, is left to the library.
"""

import json
import re

import numpy as np
from numba import njit

from data_prep.tokenizer import Vocabulary, encode_batch

_MOST_ENTRIES = 500_000  # then the cache starts anew: about 100 MB
_MOST_CHARACTERS = 50_000_000
_SIMPLE = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")  # how BERT's pre-tokenizer divides printable ASCII without spaces


class _Numbers(dict[str, int]):
    """Numbers words in the order in which they come; ``fresh`` holds those that have no ids yet."""

    def __init__(self) -> None:
        super().__init__()
        self.fresh: list[str] = []

    def __missing__(self, word: str) -> int:
        number = len(self)
        self[word] = number
        self.fresh.append(word)
        return number


class WordEncoder:
    """Encodes sentences for one vocabulary and keeps the ids of the words it has seen, in bounded memory."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._is_bert = _divides_at_spaces(vocabulary)
        self.dtype = np.dtype(vocabulary.id_dtype)
        self.unknown_id = vocabulary.tokens.index("[UNK]")
        self._forget()

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._simple: dict[str, list[int]] = {}
        self._characters = 0
        self._stops = np.zeros(1, dtype=np.int64)  # of the ids of word n in _ids, at n + 1
        self._ids = np.zeros(0, dtype=self.dtype)

    def encode(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As :func:`data_prep.tokenizer.encode_batch`: the ids of all sentences, and the number of ids of each."""
        if not self._is_bert or not sentences:
            return encode_batch(self._vocabulary, sentences)
        if len(self._numbers) > _MOST_ENTRIES or self._characters > _MOST_CHARACTERS:
            self._forget()
        words = " ".join(sentences).split(" ")
        numbers = np.fromiter(map(self._numbers.__getitem__, words), dtype=np.int64, count=len(words))
        self._learn()
        counts = np.fromiter((sentence.count(" ") for sentence in sentences), dtype=np.int64, count=len(sentences)) + 1
        sizes = self._stops[numbers + 1] - self._stops[numbers]
        flat = np.empty(int(sizes.sum()), dtype=self.dtype)
        _copy(self._ids, self._stops, numbers, flat)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return flat, np.add.reduceat(sizes, starts)

    def _learn(self) -> None:
        """Find the ids of the words that are new."""
        fresh, self._numbers.fresh = self._numbers.fresh, []
        if not fresh:
            return
        parts = [
            _SIMPLE.findall(word.lower() if self._vocabulary.lowercase else word)
            if word.isascii() and word.isprintable()
            else [word]
            for word in fresh
        ]
        known = self._simple
        missing = list({part: None for word in parts for part in word if part not in known})
        flat, lengths = encode_batch(self._vocabulary, missing)
        ids = flat.tolist()
        stop = 0
        for part, length in zip(missing, lengths.tolist(), strict=True):
            known[part] = ids[stop : stop + length]
            stop += length
        pieces = [[token for part in word for token in known[part]] for word in parts]
        sizes = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
        tokens = np.fromiter((token for piece in pieces for token in piece), dtype=self.dtype, count=sizes.sum())
        self._ids = np.concatenate([self._ids, tokens])
        self._stops = np.concatenate([self._stops, self._stops[-1] + np.cumsum(sizes)])
        self._characters += sum(map(len, fresh))


def _divides_at_spaces(vocabulary: Vocabulary) -> bool:
    """Whether the ids of a text are certain to be those of its pieces between spaces."""
    state = json.loads(vocabulary.tokenizer.to_str())
    return (
        (state["normalizer"] or {}).get("type") == "BertNormalizer"
        and (state["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
        and all(token["special"] for token in state["added_tokens"])
    )


@njit(cache=True, nogil=True)
def _copy(ids: np.ndarray, stops: np.ndarray, numbers: np.ndarray, flat: np.ndarray) -> None:
    place = 0
    for number in numbers:
        for source in range(stops[number], stops[number + 1]):
            flat[place] = ids[source]
            place += 1
