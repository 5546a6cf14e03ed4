"""New whole words for a given WordPiece vocabulary: those of a file, and those that save the most pieces of a corpus.

They become entries of the vocabulary behind all old ids, which stay. WordPiece takes the longest entry that matches, so
a new word may also become the first piece of longer words.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from bert_pretrain.errors import ConfigError
from data_prep.samples.given_tokenizer import resolve
from data_prep.samples.tokenizer import Vocabulary, files_of
from data_prep.samples.words import splits_at_spaces

LIST = "added_words.tsv"  # beside the tokenizer


@dataclass(frozen=True)
class AddedWord:
    """A new word, and what it is worth: its count in the training text times the pieces it saves."""

    word: str
    count: int
    pieces: int
    """Under the given tokenizer."""

    @property
    def saved(self) -> int:
        """Pieces saved."""
        return self.count * (self.pieces - 1)


def read_words(path: Path, vocabulary: Vocabulary) -> list[str]:
    """The words of a file, one a line, normalised, without those that the vocabulary has.

    Raises ``ConfigError`` for a line that is not one word for the tokenizer.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"vocab_add {path} is not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise ConfigError(
            f"vocab_add {path} cannot be read ({error.strerror}); give a file with a word a line"
        ) from None
    longest = json.loads(vocabulary.tokenizer.to_str())["model"]["max_input_chars_per_word"]
    found: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        words = _words(vocabulary.tokenizer, line)
        if len(words) > 1 or (words and len(words[0]) > longest):
            what = (
                f"{len(words)} words ({' | '.join(words)})" if len(words) > 1 else f"longer than {longest} characters"
            )
            raise ConfigError(f"vocab_add {path}, line {number}: {line.strip()!r} is {what} for this tokenizer")
        found |= dict.fromkeys(words)
    known = set(vocabulary.tokens)
    return [word for word in found if word not in known]


def check_word_piece(vocabulary: Vocabulary, name: str) -> None:
    """Raise ``ConfigError`` if words cannot be added to the tokenizer ``name``."""
    model = json.loads(vocabulary.tokenizer.to_str())["model"]
    if model["type"] != "WordPiece":
        raise ConfigError(
            f"vocab_add, vocab_add_count: they add whole words to a WordPiece vocabulary, but vocab {name} is a "
            f"{model['type']} tokenizer; leave them out"
        )


def choose_words(vocabulary: Vocabulary, sentences: Iterable[str], given: list[str], count: int) -> list[AddedWord]:
    """The ``given`` words, then the ``count`` words that save the most pieces, ties by word."""
    counts = count_words(vocabulary, sentences)
    model = vocabulary.tokenizer.model
    taken = [AddedWord(word, counts[word], len(model.tokenize(word))) for word in given]
    skipped = {*given, *vocabulary.tokens}
    others = [
        AddedWord(word, number, len(model.tokenize(word))) for word, number in counts.items() if word not in skipped
    ]
    others = [word for word in others if word.saved > 0]
    return taken + sorted(others, key=lambda word: (-word.saved, word.word))[:count]


def count_words(vocabulary: Vocabulary, sentences: Iterable[str]) -> Counter[str]:
    """How often each word occurs, as normalizer and pre-tokenizer make them."""
    texts: Counter[str] = Counter()
    by_word = splits_at_spaces(json.loads(vocabulary.tokenizer.to_str()))
    for sentence in sentences:
        texts.update(sentence.split(" ") if by_word else [sentence])
    counts: Counter[str] = Counter()
    for text, number in texts.items():
        for word in _words(vocabulary.tokenizer, text):
            counts[word] += number
    return counts


def add_words(vocabulary: Vocabulary, words: list[AddedWord], name: str) -> Vocabulary:
    """``vocabulary`` with new entries behind its ids, and the list of them among its files.

    Added tokens above the old entries become entries too: the library numbers them anew otherwise.
    """
    files = dict(files_of(vocabulary))
    state = json.loads(files["tokenizer.json"])
    tokens = [*vocabulary.tokens, *(word.word for word in words)]
    state["model"]["vocab"] = {token: number for number, token in enumerate(tokens)}
    files["tokenizer.json"] = Tokenizer.from_str(json.dumps(state)).to_str(pretty=True).encode()
    files["vocab.txt"] = "".join(f"{token}\n" for token in tokens).encode()
    added = resolve(files, name)
    rows = [
        (word.word, number, word.count, word.pieces, word.saved)
        for number, word in enumerate(words, len(vocabulary.tokens))
    ]
    lines = ["\t".join(map(str, row)) for row in [("word", "id", "count", "pieces", "saved"), *rows]]
    files = {**added.files, LIST: "".join(f"{line}\n" for line in lines).encode()}
    return Vocabulary(added.tokenizer, added.table, added.lowercase, files)


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    if tokenizer.pre_tokenizer is None:
        return normal.split()
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
