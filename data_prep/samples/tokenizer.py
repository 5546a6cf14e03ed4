"""WordPiece tokenizers: train or load one, write it as a folder for ``transformers``, and encode text.

Only the ``tokenizers`` library is used, which ``transformers`` itself uses for BERT: the ids are the same (a test
compares them), and torch is not loaded.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bert_pretrain.data.masking import SPECIAL_TOKENS
from bert_pretrain.errors import ConfigError

LARGEST_ALPHABET = 1000  # characters; rarer ones become [UNK]. The default of the tokenizers library
_LONGEST_WORD = 100  # characters; a longer word becomes [UNK], as in Google's tokenizer
_LONGEST_SEQUENCE = 512
_ROLES = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}  # "pad_token": "[PAD]", ...


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, its tokens in the order of their ids, and whether it lowercases."""

    tokenizer: Tokenizer
    tokens: list[str]
    lowercase: bool

    @property
    def id_dtype(self) -> type[np.unsignedinteger | np.signedinteger]:
        """The smallest dtype for all ids: uint16 or int32."""
        return np.uint16 if len(self.tokens) <= 1 << 16 else np.int32

    @property
    def vocab_hash(self) -> str:
        """SHA-256 of ``vocab.txt``."""
        return hashlib.sha256(_vocab_text(self).encode()).hexdigest()

    @property
    def tokenizer_hash(self) -> str:
        """SHA-256 of ``tokenizer.json``."""
        return hashlib.sha256(self.tokenizer.to_str(pretty=True).encode()).hexdigest()


def train_vocabulary(sentences: Callable[[], Iterable[str]], size: int, lowercase: bool) -> Vocabulary:
    """Train WordPiece on ``sentences()``, which is called three times. Raises ``ConfigError`` if ``size`` is too small.

    The trainer numbers the letters in the order of a hash map, which differs between processes, and breaks ties
    between merges by these numbers. For a reproducible vocabulary, a first pass finds the letters (and ``##`` letters)
    and the second gets them sorted.
    """
    special = list(SPECIAL_TOKENS)
    letters = _letters(sentences(), lowercase)
    found = set(_trained_tokens(sentences(), len(special), lowercase, special, letters))
    if len(found) >= size:
        raise ConfigError(
            f"vocab_size is {size}, but this corpus has {len(found)} letters and special tokens alone; allowed: more "
            f"than {len(found)}"
        )
    tokens = _trained_tokens(sentences(), size, lowercase, special + sorted(found - set(special)), letters)
    return _of_tokens(tokens, lowercase)


def _letters(sentences: Iterable[str], lowercase: bool) -> list[str]:
    """The most frequent characters after normalisation, ties by code point."""
    raw: Counter[str] = Counter()
    for sentence in sentences:
        raw.update(sentence)
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for letter in normalizer.normalize_str(character):
            if not letter.isspace():
                counts[letter] += count
    return sorted(counts, key=lambda letter: (-counts[letter], letter))[:LARGEST_ALPHABET]


def _trained_tokens(
    sentences: Iterable[str], size: int, lowercase: bool, first: list[str], letters: list[str]
) -> list[str]:
    tokenizer = _bert_tokenizer({}, lowercase)
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


def load_vocabulary(path: Path, lowercase: bool = True) -> Vocabulary:
    """Load a ``vocab.txt``, or a folder with ``tokenizer.json`` or else ``vocab.txt``.

    ``lowercase`` is for a ``vocab.txt``; a ``tokenizer.json`` states it. Raises ``ConfigError`` for anything but a
    WordPiece vocabulary with all of ``SPECIAL_TOKENS``.
    """
    file = path
    if path.is_dir():
        file = path / "tokenizer.json" if (path / "tokenizer.json").is_file() else path / "vocab.txt"
    if not file.is_file():
        raise ConfigError(f"vocab is {str(path)!r}; it takes a vocab.txt, or a folder with tokenizer.json or vocab.txt")
    if file.suffix == ".json":
        return _load_tokenizer_json(file, file.stat().st_mtime_ns)
    try:
        tokens = file.read_text(encoding="utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"vocab {file} is not UTF-8 at byte {error.start}") from None
    double = [token for token, count in Counter(tokens).items() if count > 1]
    if double:
        raise ConfigError(f"vocab {file}: {double[0]!r} occurs twice; every token must be on one line only")
    _check_special(tokens, file)
    return _of_tokens(tokens, lowercase)


@functools.lru_cache(maxsize=1)
def _load_tokenizer_json(file: Path, changed: int) -> Vocabulary:
    """Cached for all stages. ``changed`` is the file's modification time."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower class
        raise ConfigError(f"vocab {file} cannot be read by the tokenizers library: {error}") from None
    state = json.loads(tokenizer.to_str())
    kind = state["model"].get("type")
    if kind != "WordPiece":
        raise ConfigError(f"vocab {file} is a {kind} tokenizer; BERT takes WordPiece")
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.__getitem__)
    if sorted(vocab.values()) != list(range(len(tokens))):
        raise ConfigError(f"vocab {file}: its {len(tokens)} ids are not 0 to {len(tokens) - 1}")
    _check_special(tokens, file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    normalizer = state.get("normalizer") or {}
    return Vocabulary(tokenizer, tokens, bool(normalizer.get("lowercase", False)))


def _check_special(tokens: list[str], file: Path) -> None:
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise ConfigError(f"vocab {file} has no {', '.join(missing)}; BERT needs {' '.join(SPECIAL_TOKENS)}")


def _of_tokens(tokens: list[str], lowercase: bool) -> Vocabulary:
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = _bert_tokenizer(ids, lowercase)
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(sorted(SPECIAL_TOKENS, key=ids.__getitem__))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return Vocabulary(tokenizer, tokens, lowercase)


def _bert_tokenizer(ids: dict[str, int], lowercase: bool) -> Tokenizer:
    model = models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
    """Write ``vocab.txt``, ``tokenizer.json``, ``tokenizer_config.json`` and ``special_tokens_map.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": vocabulary.lowercase,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "model_max_length": _LONGEST_SEQUENCE,
        **_ROLES,
    }
    contents = {
        "vocab.txt": _vocab_text(vocabulary),
        "tokenizer.json": vocabulary.tokenizer.to_str(pretty=True),
        "special_tokens_map.json": json.dumps(_ROLES, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _vocab_text(vocabulary: Vocabulary) -> str:
    return "\n".join(vocabulary.tokens) + "\n"


def encode_batch(vocabulary: Vocabulary, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all sentences concatenated, without special tokens, and the number of ids of each.

    A special token's name in the text ("[MASK]") is encoded as plain text.
    """
    vocabulary.tokenizer.encode_special_tokens = True
    encodings = vocabulary.tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
    ids = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    flat = np.fromiter(chain.from_iterable(ids), dtype=vocabulary.id_dtype, count=int(lengths.sum()))
    return flat, lengths
