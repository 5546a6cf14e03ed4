"""Token ids of sentences, equal to those of the ``tokenizers`` library and about 20 times as fast.

BERT's normalizer works character by character and its pre-tokenizer splits at spaces, so the ids of a text are those
of its space-separated words, concatenated. A word in printable ASCII is divided into letters-and-digits and signs and
matched with the vocabulary here (WordPiece: the longest matching entry, repeatedly) by a trie over its bytes. Other
words are encoded by the library and cached. If normalizer, pre-tokenizer or model are not BERT's, or tokens were added
that are found within the text, the library encodes whole sentences.
"""

import json
from typing import Any

import numpy as np

from bert_pretrain.data.tokenizer_files import pre_tokenizer_steps
from bert_pretrain.jit import cached_njit
from data_prep.samples.tokenizer import Vocabulary, encode_batch
from data_prep.sources.letters import begins_unspaced

_MOST_ENTRIES = 500_000  # words, about 100 MB; then the cache is emptied
_MOST_BYTES = 50_000_000
_LINE_END = 0x0A
_FIRST, _LAST = 0x21, 0x7E  # printable ASCII without the space
_LETTERS, _CAPITALS = (slice(ord(first) - _FIRST, ord(last) + 1 - _FIRST) for first, last in ("az", "AZ"))
_OTHER, _BREAK, _LETTER, _SIGN = 0, 1, 2, 3  # kinds of bytes; a word of printable ASCII is split at each sign
_KINDS = np.zeros(256, dtype=np.uint8)
_KINDS[_FIRST : _LAST + 1] = [_LETTER if chr(byte).isalnum() else _SIGN for byte in range(_FIRST, _LAST + 1)]
_KINDS[[_LINE_END, 0x20]] = _BREAK
_NONE, _WORD, _REST = 0, 1, 2  # nodes of the trie: none; the root for the start of a word; the root for its rest


class WordEncoder:
    """Encodes sentences with one vocabulary. Caches the ids of words that are not ASCII, in bounded memory."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        state = json.loads(vocabulary.tokenizer.to_str())
        self._is_bert = splits_at_spaces(state)
        self._keeps_spaces = keeps_spaces(state)
        self.dtype = np.dtype(vocabulary.id_dtype)
        self.unknown_id = vocabulary.roles["unk"]
        continues = vocabulary.table.is_continuation
        self.begins_word = np.zeros(len(vocabulary.tokens), dtype=np.bool_) if continues is None else ~continues
        if self._is_bert:
            self._longest_word = state["model"]["max_input_chars_per_word"]
            vocab = vocabulary.tokenizer.get_vocab(with_added_tokens=False)
            self._children, self._tokens = _trie(vocab, state["model"]["continuing_subword_prefix"])
            if vocabulary.lowercase:
                self._children[:, _CAPITALS] = self._children[:, _LETTERS]
            self._empty_cache()

    def _empty_cache(self) -> None:
        self._numbers: dict[bytes, int] = {}  # of the cached words
        self._bytes = 0
        self._stops = np.zeros(1, dtype=np.int64)  # the ids of word n are _ids[_stops[n] : _stops[n + 1]]
        self._ids = np.zeros(0, dtype=self.dtype)

    def encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all sentences concatenated, and the number of ids of each.

        ``text`` is UTF-8 with a line feed after each sentence.
        """
        if not self._is_bert:
            sentences = text.decode().split("\n")[:-1]
            if self._keeps_spaces:
                sentences = [one if begins_unspaced(one) else f" {one}" for one in sentences]
            return encode_batch(self.vocabulary, sentences)
        if len(self._numbers) > _MOST_ENTRIES or self._bytes > _MOST_BYTES:
            self._empty_cache()
        letters = np.frombuffer(text, dtype=np.uint8)
        lengths = np.empty(text.count(b"\n"), dtype=np.int64)
        spans = np.empty((text.count(b" ") + len(lengths), 2), dtype=np.int64)
        spans = spans[: _find_others(letters, spans)]
        words = [text[start:stop] for start, stop in spans.tolist()]
        self._add_to_cache([word for word in dict.fromkeys(words) if word not in self._numbers])
        numbers = np.fromiter(map(self._numbers.__getitem__, words), dtype=np.int64, count=len(words))
        of_words = int((self._stops[numbers + 1] - self._stops[numbers]).sum())
        ids = np.empty(len(text) + of_words, dtype=self.dtype)
        count = _encode(
            letters,
            spans,
            numbers,
            self._ids,
            self._stops,
            self._children,
            self._tokens,
            self._longest_word,
            self.unknown_id,
            ids,
            lengths,
        )
        return ids[:count].copy(), lengths

    def _add_to_cache(self, words: list[bytes]) -> None:
        """Let the library encode words that are not in the cache."""
        if words:
            ids, sizes = encode_batch(self.vocabulary, [word.decode() for word in words])
            self._numbers.update(zip(words, range(len(self._numbers), len(self._numbers) + len(words)), strict=True))
            self._ids = np.concatenate([self._ids, ids])
            self._stops = np.concatenate([self._stops, self._stops[-1] + np.cumsum(sizes)])
            self._bytes += sum(map(len, words))


def splits_at_spaces(state: dict[str, Any]) -> bool:
    """Whether the ids of a text are surely those of its space-separated words. ``state``: the tokenizer's JSON."""
    return bool(
        (state["normalizer"] or {}).get("type") == "BertNormalizer"
        and (state["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
        and state["model"].get("type") == "WordPiece"
        and state["model"]["continuing_subword_prefix"]
        and all(token["special"] for token in state["added_tokens"])
    )


def keeps_spaces(state: dict[str, Any]) -> bool:
    """Whether the space before a word is part of its ids, and only a space that is there: byte-level BPE, as GPT-2's.

    Such a tokenizer gets every sentence with the space that is before it in the text.
    """
    steps = pre_tokenizer_steps(state)
    return any(step.get("type") == "ByteLevel" and not step["add_prefix_space"] for step in steps)


def _trie(vocab: dict[str, int], prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """The entries in printable ASCII as a trie: children (nodes, letters), and the token of each node, or -1.

    Entries that begin with ``prefix`` are below the root ``_REST``, without the prefix; all others below ``_WORD``.
    """
    words = [word for word in vocab if word.isascii() and word.isprintable() and " " not in word and word != prefix]
    nodes = np.array([_REST if word.startswith(prefix) else _WORD for word in words], dtype=np.int64)
    rests = [word.removeprefix(prefix) for word in words]
    lengths = np.fromiter(map(len, rests), dtype=np.int64, count=len(rests))
    letters = np.frombuffer("".join(rests).encode(), dtype=np.uint8).astype(np.int64) - _FIRST
    starts, width = np.cumsum(lengths) - lengths, _LAST - _FIRST + 1
    count, edges = _REST + 1, [np.zeros(0, dtype=np.int64)]  # (node, letter) of the nodes from _REST + 1 on
    for depth in range(max(map(len, rests), default=0)):  # one letter more of all words
        longer = np.flatnonzero(lengths > depth)
        found, child = np.unique(nodes[longer] * width + letters[starts[longer] + depth], return_inverse=True)
        nodes[longer] = count + child
        edges.append(found)
        count += len(found)
    table = np.zeros(count * width, dtype=np.int32)
    table[np.concatenate(edges)] = np.arange(_REST + 1, count)
    tokens = np.full(count, -1, dtype=np.int32)
    tokens[nodes] = [vocab[word] for word in words]
    return table.reshape(count, width), tokens


@cached_njit()
def _find_others(text: np.ndarray, spans: np.ndarray) -> int:
    """Write start and stop of each word that is not printable ASCII to ``spans``; return their number."""
    count = start = 0
    is_plain = True
    for place in range(len(text)):
        kind = _KINDS[text[place]]
        if kind == _BREAK:
            if not is_plain:
                spans[count, 0] = start
                spans[count, 1] = place
                count += 1
            start = place + 1
            is_plain = True
        elif kind == _OTHER:
            is_plain = False
    return count


@cached_njit()
def _encode(
    text: np.ndarray,
    spans: np.ndarray,
    others: np.ndarray,
    ids_of_others: np.ndarray,
    stops_of_others: np.ndarray,
    children: np.ndarray,
    tokens: np.ndarray,
    longest_word: int,
    unknown_id: int,
    ids: np.ndarray,
    lengths: np.ndarray,
) -> int:
    """Fill ``ids`` and ``lengths``. ``spans``, ``others``: places and numbers of the words that are not ASCII."""
    count = line_start = line = other = place = 0
    while place < len(text):
        if other < len(spans) and place == spans[other, 0]:
            number = others[other]
            for source in range(stops_of_others[number], stops_of_others[number + 1]):
                ids[count] = ids_of_others[source]
                count += 1
            place = spans[other, 1]
            other += 1
        kind = _KINDS[text[place]]
        end = place + 1
        if kind == _BREAK:
            if text[place] == _LINE_END:
                lengths[line] = count - line_start
                line += 1
                line_start = count
        else:
            while kind == _LETTER and _KINDS[text[end]] == _LETTER:
                end += 1
            if end - place > longest_word:
                ids[count] = unknown_id
                count += 1
            else:
                count = _match(text, place, end, children, tokens, unknown_id, ids, count)
        place = end
    return count


@cached_njit()
def _match(
    text: np.ndarray,
    start: int,
    stop: int,
    children: np.ndarray,
    tokens: np.ndarray,
    unknown_id: int,
    ids: np.ndarray,
    count: int,
) -> int:
    """Write the ids of one word or sign, by Google's WordPiece, from ``ids[count]`` on; return the new count."""
    first = count
    root = _WORD
    while start < stop:
        node = root
        token = -1
        place = start
        while place < stop:
            node = children[node, text[place] - _FIRST]
            if node == _NONE:
                break
            place += 1
            if tokens[node] >= 0:
                token = tokens[node]
                start = place
        if token < 0:
            ids[first] = unknown_id
            return first + 1
        ids[count] = token
        count += 1
        root = _REST
    return count
