"""WordPiece tokenizers: train or load one, write it as a folder for ``transformers``, and encode text.

Only the ``tokenizers`` library is used, which ``transformers`` itself uses for BERT: the ids are the same (a test
compares them), and torch is not loaded.
"""

import functools
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bert_pretrain.data.masking_rule import SPECIAL_TOKENS
from bert_pretrain.data.tokenizer_files import TokenTable, read_tokenizer, read_vocab_text, require_roles, token_table
from bert_pretrain.errors import ConfigError

_SMALLEST_ALPHABET = 1000  # letters, if the text has so many; the largest of the tokenizers library's trainer
_LONGEST_WORD = 100  # characters; a longer word becomes [UNK], as in Google's tokenizer
_REMEMBERED = 2_000_000  # characters of words, about 30 MB
LONGEST_SEQUENCE = 512  # model_max_length of a tokenizer that states none


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, its tokens, and whether it lowercases."""

    tokenizer: Tokenizer
    table: TokenTable
    lowercase: bool
    """As BERT's normalizer states it."""
    files: dict[str, bytes] = field(default_factory=dict)
    """The files of a given tokenizer, which are written as they are."""

    @property
    def tokens(self) -> list[str]:
        """The tokens in the order of their ids."""
        return self.table.tokens

    @property
    def roles(self) -> dict[str, int]:
        """The ids of the special tokens: pad, unk, cls, sep, mask."""
        return self.table.roles

    @property
    def strips_accents(self) -> bool:
        """Whether the normalizer makes "e" of "\u00e9" and "\u00c9"."""
        normalizer = self.tokenizer.normalizer
        return normalizer is not None and normalizer.normalize_str("\u00e9\u00c9").lower() == "ee"

    @property
    def id_dtype(self) -> type[np.unsignedinteger | np.signedinteger]:
        """The smallest dtype for all ids: uint16 or int32."""
        return np.uint16 if len(self.tokens) <= 1 << 16 else np.int32

    @property
    def vocab_hash(self) -> str:
        """SHA-256 of the tokens, one a line."""
        return self.table.vocab_hash

    @property
    def tokenizer_hash(self) -> str:
        """SHA-256 of ``tokenizer.json``."""
        return hashlib.sha256(self.tokenizer.to_str(pretty=True).encode()).hexdigest()


@dataclass(frozen=True)
class Letters:
    """How a vocabulary treats letters."""

    lowercase: bool
    strip_accents: bool | None = None
    """None: if ``lowercase``, and most letters of the text are Latin."""
    coverage: float = 0.9995
    """Share of the characters of the text that have entries of their own."""


def train_vocabulary(sentences: Callable[[], Iterable[str]], size: int, rules: Letters) -> Vocabulary:
    """Train WordPiece on ``sentences()``, which is called three times. Raises ``ConfigError`` if ``size`` is too small.

    The trainer numbers the letters in the order of a hash map, which differs between processes, and breaks ties
    between merges by these numbers. For a reproducible vocabulary, a first training finds the letters (and ``##``
    letters) and the second gets them sorted. How often a word occurs is nothing to the first.
    """
    special = list(SPECIAL_TOKENS)
    characters: Counter[str] = Counter()
    for sentence in sentences():
        characters.update(sentence)
    strip_accents = rules.strip_accents
    if strip_accents is None and rules.lowercase and not _is_mostly_latin(characters):
        strip_accents = False
    normalizer = normalizers.BertNormalizer(lowercase=rules.lowercase, strip_accents=strip_accents)
    letters = _alphabet(characters, normalizer, rules.coverage)
    found = set(_trained_tokens(_words_once(sentences()), len(special), normalizer, special, letters))
    if len(found) >= size:
        raise ConfigError(
            f"vocab_size is {size}, but this corpus has {len(found)} letters and special tokens alone; allowed: more "
            f"than {len(found)}, or a smaller alphabet_coverage"
        )
    tokens = _trained_tokens(sentences(), size, normalizer, special + sorted(found - set(special)), letters)
    table = _bert_table({token: number for number, token in enumerate(tokens)}, Path("trained"))
    return _of_table(table, rules.lowercase, normalizer)


def _is_mostly_latin(characters: Counter[str]) -> bool:
    """Whether Latin letters are the majority of the letters."""
    letters = {letter: count for letter, count in characters.items() if letter.isalpha()}
    latin = sum(count for letter, count in letters.items() if unicodedata.name(letter, "").startswith("LATIN"))
    return 2 * latin > sum(letters.values())


def _alphabet(characters: Counter[str], normalizer: normalizers.Normalizer, coverage: float) -> list[str]:
    """The most frequent letters after normalisation, ties by code point: as many as cover the share ``coverage``."""
    counts: Counter[str] = Counter()
    for character, count in characters.items():
        for letter in normalizer.normalize_str(character):
            if not letter.isspace():
                counts[letter] += count
    letters = sorted(counts, key=lambda letter: (-counts[letter], letter))
    covered = np.cumsum([counts[letter] for letter in letters])
    needed = 1 + int(np.searchsorted(covered, coverage * counts.total())) if letters else 0
    return letters[: max(needed, _SMALLEST_ALPHABET)]


def _words_once(sentences: Iterable[str]) -> Iterator[str]:
    """The words between spaces, most of them once: those seen are forgotten now and then, to bound the memory."""
    seen: set[str] = set()
    characters = 0
    for sentence in sentences:
        new = set(sentence.split(" ")) - seen
        if new:
            yield " ".join(new)
            seen |= new
            characters += sum(map(len, new))
        if characters > _REMEMBERED:
            seen.clear()
            characters = 0


def _trained_tokens(
    sentences: Iterable[str], size: int, normalizer: normalizers.Normalizer, first: list[str], letters: list[str]
) -> list[str]:
    tokenizer = _bert_tokenizer({}, normalizer)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=first,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def load_vocabulary(path: Path, lowercase: bool = True, strip_accents: bool | None = None) -> Vocabulary:
    """Load a ``vocab.txt``, or a folder with ``tokenizer.json`` or else ``vocab.txt``.

    ``lowercase`` and ``strip_accents`` (None: as ``lowercase``) are for a ``vocab.txt``; a ``tokenizer.json`` states
    them. Raises ``ConfigError`` for a tokenizer that lacks one of BERT's five special tokens.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.name == "tokenizer.json" and file.is_file():
        return _load_tokenizer_json(file, file.stat().st_mtime_ns)
    file = path / "vocab.txt" if path.is_dir() else path
    if not file.is_file() or file.suffix == ".json":
        raise ConfigError(f"vocab is {str(path)!r}; it takes a vocab.txt, or a folder with tokenizer.json or vocab.txt")
    table = read_tokenizer(path) if path.is_dir() else _bert_table(read_vocab_text(file), file)
    require_roles(table, file)
    return _of_table(table, lowercase, normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents))


@functools.lru_cache(maxsize=2)
def _load_tokenizer_json(file: Path, changed: int) -> Vocabulary:
    """Cached for all stages. ``changed`` is the file's modification time."""
    table = read_tokenizer(file.parent)
    require_roles(table, file)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower class
        raise ConfigError(f"vocab {file} cannot be read by the tokenizers library: {error}") from None
    return of_tokenizer(tokenizer, table)


def of_tokenizer(tokenizer: Tokenizer, table: TokenTable) -> Vocabulary:
    """A vocabulary from its parts. ``tokenizer`` is changed: it neither pads nor truncates.

    Special tokens in a text are encoded as plain text (:func:`encode_batch`), but those without a role in BERT have a
    meaning of their own, such as ``<url>``: they are found in the text, as in transformers.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    state = json.loads(tokenizer.to_str())
    others = [token for token in state["added_tokens"] if token["special"] and token["id"] not in table.roles.values()]
    if others:
        for token in others:
            token["special"] = False
        tokenizer = Tokenizer.from_str(json.dumps(state))
    return Vocabulary(tokenizer, table, bool((state.get("normalizer") or {}).get("lowercase", False)))


def _bert_table(ids: dict[str, int], where: Path) -> TokenTable:
    return token_table(ids, {}, {}, set(), where)


def _of_table(table: TokenTable, lowercase: bool, normalizer: normalizers.Normalizer) -> Vocabulary:
    names = {role: table.tokens[number] for role, number in table.roles.items()}
    ids = {token: index for index, token in enumerate(table.tokens)}
    tokenizer = _bert_tokenizer(ids, normalizer, names["unk"])
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(sorted(names.values(), key=ids.__getitem__))
    cls, sep = names["cls"], names["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
    )
    return Vocabulary(tokenizer, table, lowercase)


def _bert_tokenizer(ids: dict[str, int], normalizer: normalizers.Normalizer, unknown: str = "[UNK]") -> Tokenizer:
    model = models.WordPiece(ids, unk_token=unknown, max_input_chars_per_word=_LONGEST_WORD)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
    """Write the files of a given tokenizer, or those of one that was trained here or read from a ``vocab.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files_of(vocabulary).items():
        (folder / name).write_bytes(content)


def files_of(vocabulary: Vocabulary) -> dict[str, bytes]:
    """The files of a tokenizer's folder."""
    if vocabulary.files:
        return vocabulary.files
    roles = {f"{role}_token": vocabulary.tokens[number] for role, number in vocabulary.roles.items()}
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": vocabulary.lowercase,
        "tokenize_chinese_chars": True,
        "strip_accents": json.loads(vocabulary.tokenizer.to_str())["normalizer"]["strip_accents"],
        "model_max_length": LONGEST_SEQUENCE,
        **roles,
    }
    contents = {
        "vocab.txt": "".join(f"{token}\n" for token in vocabulary.tokens),
        "tokenizer.json": vocabulary.tokenizer.to_str(pretty=True),
        "special_tokens_map.json": json.dumps(roles, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }
    return {name: text.encode() for name, text in contents.items()}


def encode_batch(vocabulary: Vocabulary, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all sentences concatenated, without special tokens, and the number of ids of each.

    The name of a special token of BERT in the text ("[MASK]") is encoded as plain text.
    """
    vocabulary.tokenizer.encode_special_tokens = True
    encodings = vocabulary.tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
    ids = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    flat = np.fromiter(chain.from_iterable(ids), dtype=vocabulary.id_dtype, count=int(lengths.sum()))
    return flat, lengths
