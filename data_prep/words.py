"""Token ids of sentences, exactly those of the ``tokenizers`` library, several times as fast: a cache of words.

BERT's normalizer works character by character and its pre-tokenizer splits at every space, so the ids of a text are
those of the pieces between its spaces, one after the other. Each such piece is encoded once and looked up from then
on. A new piece in printable ASCII is divided into words and signs, which are looked up, too, and what is new among
them is matched with the vocabulary here (WordPiece: the longest piece that fits, again and again). Other new pieces
are given to the library, and so is everything where normalizer or pre-tokenizer are not BERT's, or tokens were added.
"""

import json
import re
from typing import Any

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
        state = json.loads(vocabulary.tokenizer.to_str())
        self._is_bert = _divides_at_spaces(state)
        self._vocab = vocabulary.tokenizer.get_vocab(with_added_tokens=False)
        self._prefix = state["model"]["continuing_subword_prefix"]
        self._longest_word = state["model"]["max_input_chars_per_word"]
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
        known = self._simple
        others = [word for word in fresh if not (word.isascii() and word.isprintable())]
        flat, lengths = encode_batch(self._vocabulary, others)
        stops = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        ids = flat.tolist()
        of_others = {word: ids[stops[place] : stops[place + 1]] for place, word in enumerate(others)}
        tokens: list[int] = []
        sizes = []
        for word in fresh:
            before = len(tokens)
            if word in of_others:
                tokens += of_others[word]
            else:
                for part in _SIMPLE.findall(word.lower() if self._vocabulary.lowercase else word):
                    found = known.get(part)
                    if found is None:
                        found = known[part] = self._match(part)
                    tokens += found
            sizes.append(len(tokens) - before)
        self._ids = np.concatenate([self._ids, np.array(tokens, dtype=self.dtype)])
        self._stops = np.concatenate([self._stops, self._stops[-1] + np.cumsum(sizes)])
        self._characters += sum(map(len, fresh))

    def _match(self, word: str) -> list[int]:
        """The ids of one word or sign, as Google's WordPiece finds them."""
        whole = self._vocab.get(word)
        if whole is not None and len(word) <= self._longest_word:
            return [whole]
        if len(word) > self._longest_word:
            return [self.unknown_id]
        ids: list[int] = []
        start = 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                piece = word[start:stop] if start == 0 else self._prefix + word[start:stop]
                token = self._vocab.get(piece)
                if token is not None:
                    break
            else:
                return [self.unknown_id]
            ids.append(token)
            start = stop
        return ids


def _divides_at_spaces(state: dict[str, Any]) -> bool:
    """Whether the ids of a text are certain to be those of its pieces between spaces, by the tokenizer's JSON."""
    return bool(
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
