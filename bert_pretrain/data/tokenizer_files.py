"""Reads a tokenizer's folder without transformers: its tokens in the order of their ids, and which of them are special.

The roles of BERT's five special tokens come from ``tokenizer_config.json``, ``special_tokens_map.json``, the
post-processor and the model of ``tokenizer.json``, and else from BERT's names and RoBERTa's.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_pretrain.data.masking_rule import SPECIAL_TOKENS, MaskingRule
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.retry import read_patiently

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt")
"""All that a tokenizer's folder may hold."""
ROLES = tuple(token[1:-1].lower() for token in SPECIAL_TOKENS)  # pad, unk, cls, sep, mask
_OTHER_NAMES = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_RESTORE = "restore the tokenizer's files"
_WORD_STARTS = {"ByteLevel": "Ġ", "Metaspace": "▁"}  # pre-tokenizer: the mark of a word's first piece


@dataclass(frozen=True)
class TokenTable:
    """The tokens of a tokenizer in the order of their ids."""

    tokens: list[str]
    roles: dict[str, int]
    """The ids of the special tokens by role, those of ``ROLES`` that the tokenizer has."""
    special_ids: tuple[int, ...]
    """The ids of all special tokens, those with other roles too."""
    prefix: str | None = None
    """What the pieces of a word begin with: all but the first (``##``), or with ``is_word_start`` the first only."""
    is_word_start: bool = False

    @property
    def vocab_hash(self) -> str:
        """SHA-256 of the tokens, one a line: that of ``vocab.txt`` where this holds all of them."""
        return hashlib.sha256("".join(f"{token}\n" for token in self.tokens).encode()).hexdigest()

    @property
    def is_continuation(self) -> np.ndarray | None:
        """Whether each token (vocab_size,) continues a word; None if the tokenizer marks no words."""
        if self.prefix is None:
            return None
        marked = np.array([token.startswith(self.prefix) for token in self.tokens])
        marked = ~marked if self.is_word_start else marked
        marked[list(self.special_ids)] = False
        return marked


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer that ``read_tokenizer`` reads."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))


def read_tokenizer(folder: Path) -> TokenTable:
    """The table of ``folder``, by its ``tokenizer.json`` or else its ``vocab.txt``.

    Raises ``ConfigError`` if neither can be read, two tokens have one id, or the ids have a gap.
    """
    config = _read_json(folder / "tokenizer_config.json")
    roles_map = _read_json(folder / "special_tokens_map.json")
    state = _read_json(folder / "tokenizer.json")
    with _one_message(folder):
        added = _added_tokens(config, state)
        special = {token for token, entry in added.items() if entry.get("special")}
        special |= {token for source in (config, roles_map) for key in _LISTS for token in _names(source.get(key))}
        return token_table(_all_ids(folder, state, added), _stated_roles(config, roles_map), state, special, folder)


def read_ids(folder: Path) -> dict[str, int] | None:
    """Each token of the tokenizer in ``folder`` with its id, which may have gaps; None if there is no tokenizer.

    Raises ``ConfigError`` if a file cannot be read.
    """
    if not has_tokenizer(folder):
        return None
    config = _read_json(folder / "tokenizer_config.json")
    state = _read_json(folder / "tokenizer.json")
    with _one_message(folder):
        return _all_ids(folder, state, _added_tokens(config, state))


@contextmanager
def _one_message(folder: Path) -> Iterator[None]:
    """What files of another form raise becomes a ``ConfigError`` about the tokenizer in ``folder``."""
    try:
        yield
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"tokenizer {folder} cannot be read: its files are no tokenizer's ({error!r})") from None


def same_ids(one: dict[str, int], other: dict[str, int]) -> bool:
    """Whether all tokens that both have are at the same ids."""
    return all(other.get(token, number) == number for token, number in one.items())


def _added_tokens(config: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """The tokens that were added to the vocabulary, each with its entry."""
    added = {entry["content"]: entry for entry in state.get("added_tokens") or []}
    for number, entry in config.get("added_tokens_decoder", {}).items():
        added.setdefault(entry["content"], {**entry, "id": int(number)})
    return added


def _all_ids(folder: Path, state: dict[str, Any], added: dict[str, Any]) -> dict[str, int]:
    """Of the vocabulary, and of the tokens that were added to it: ``added``, each with its entry."""
    ids = _ids_of_json(state) if state else read_vocab_text(folder / "vocab.txt")
    numbers = _read_json(folder / "added_tokens.json") | {token: entry["id"] for token, entry in added.items()}
    for token, number in numbers.items():
        ids.setdefault(token, int(number))
    return ids


def token_table(
    ids: Mapping[str, int], stated: Mapping[str, str], state: Mapping[str, Any], special: set[str], where: Path | str
) -> TokenTable:
    """The table for ``ids``. ``stated``: special tokens by role; ``special``: all of them; ``state``: tokenizer.json.

    Raises ``ConfigError`` if the ids are not 0, 1, 2, ...; ``where`` names the tokenizer.
    """
    tokens = sorted(ids, key=ids.__getitem__)
    for number, token in enumerate(tokens):
        if ids[token] > number:
            raise ConfigError(
                f"tokenizer {where}: {token!r} has id {ids[token]}, but no token has id {number}; ids must be 0 to "
                f"{len(tokens) - 1} without gaps: give the missing ids a token each, such as [unused{number}]"
            )
        if ids[token] < number:
            raise ConfigError(f"tokenizer {where}: {tokens[number - 1]!r} and {token!r} both have id {ids[token]}")
    names = {**_guessed_roles(state, ids), **stated}
    roles = {role: ids[names[role]] for role in ROLES if names.get(role) in ids}
    special_ids = {ids[token] for token in special if token in ids} | set(roles.values())
    prefix, is_word_start = _word_mark(state)
    return TokenTable(tokens, roles, tuple(sorted(special_ids)), prefix, is_word_start)


def require_roles(table: TokenTable, where: Path | str) -> None:
    """Raise ``ConfigError`` unless the tokenizer has all five special tokens."""
    missing = [name for role, name in zip(ROLES, SPECIAL_TOKENS, strict=True) if role not in table.roles]
    if missing:
        raise ConfigError(
            f"vocab {where} has no {', '.join(missing)}; BERT needs {' '.join(SPECIAL_TOKENS)}, or tokens that "
            "tokenizer_config.json names as mask_token and so on"
        )


def masking_rule(
    table: TokenTable, masked_lm_prob: float, max_predictions: int, whole_word: bool, vocab_size: int, where: Path
) -> MaskingRule:
    """The rule for ids up to ``vocab_size``, the model's; those that have no token are never chosen and never drawn.

    Raises ``ConfigError`` if a special token is missing, or ``whole_word`` is asked for and words are not marked.
    """
    require_roles(table, where)
    continuation = table.is_continuation if whole_word else None
    if whole_word and continuation is None:
        raise ConfigError(
            f"tokenizer {where} does not mark which pieces begin a word, which whole_word_masking=true needs; set "
            "whole_word_masking=false"
        )
    padding = vocab_size - len(table.tokens)
    if continuation is not None:
        continuation = np.pad(continuation, (0, padding))
    special = np.array([*table.special_ids, *range(len(table.tokens), vocab_size)])
    return MaskingRule(masked_lm_prob, max_predictions, table.roles["mask"], vocab_size, special, continuation)


def read_vocab_text(path: Path) -> dict[str, int]:
    """The ids of a ``vocab.txt``: one token a line. Raises ``ConfigError`` if it cannot be read."""
    try:
        text = read_patiently(path.read_bytes, f"vocab {path}", _RESTORE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"vocab {path} is not UTF-8 at byte {error.start}") from None
    ids: dict[str, int] = {}
    for number, token in enumerate(text.replace("\r\n", "\n").removesuffix("\n").split("\n")):
        if token in ids:
            raise ConfigError(f"vocab {path}: {token!r} occurs twice; every token must be on one line only")
        ids[token] = number
    return ids


def _ids_of_json(state: dict[str, Any]) -> dict[str, int]:
    vocab = state["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: pairs of piece and score
        return {piece: number for number, (piece, _) in enumerate(vocab)}
    return dict(vocab)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}

    def read() -> dict[str, Any]:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return content

    return read_patiently(read, f"tokenizer {path}", _RESTORE, (OSError, ValueError, RecursionError))


def _names(values: Any) -> list[str]:
    """Tokens that are written as text, as objects with ``content``, or as a list of these."""
    if isinstance(values, dict):
        return [values["content"]] if isinstance(values.get("content"), str) else []
    if isinstance(values, list):
        return [name for value in values for name in _names(value)]
    return [values] if isinstance(values, str) else []


def _stated_roles(config: Mapping[str, Any], roles_map: Mapping[str, Any]) -> dict[str, str]:
    """As in transformers: the map counts where the configuration lists no added tokens."""
    sources = [config] if "added_tokens_decoder" in config else [config, roles_map]
    return {role: name for source in sources for role in ROLES for name in _names(source.get(f"{role}_token"))}


def _guessed_roles(state: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, str]:
    """Roles that no configuration states."""
    processor = state.get("post_processor") or {}
    model = state.get("model", {})
    found = {}
    for role, name in zip(ROLES, SPECIAL_TOKENS, strict=True):
        candidates = [name, _OTHER_NAMES[role]]
        if role in processor and isinstance(processor[role], list):  # BertProcessing, RobertaProcessing
            candidates.insert(0, processor[role][0])
        if role == "unk" and isinstance(model.get("unk_token"), str):
            candidates.insert(0, model["unk_token"])
        found[role] = next((token for token in candidates if token in ids), name)
    return found


def pre_tokenizer_steps(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps of the pre-tokenizer in a tokenizer's JSON: one, or those of a ``Sequence``."""
    first = state.get("pre_tokenizer") or {}
    return first.get("pretokenizers", [first])


def _word_mark(state: Mapping[str, Any]) -> tuple[str | None, bool]:
    """How pieces show where a word begins: (prefix, whether it marks the first piece)."""
    if not state:
        return "##", False
    prefix = state.get("model", {}).get("continuing_subword_prefix")
    if prefix:
        return prefix, False
    for step in pre_tokenizer_steps(state):
        if step.get("type") in _WORD_STARTS:
            return step.get("replacement", _WORD_STARTS[step["type"]]), True
    return None, False


def is_lowercase(tokens: list[str]) -> bool:
    """Whether a vocabulary is of lower-case text: fewer than 1 in 100 tokens have a capital letter."""
    words = [token for token in tokens if not (token.startswith("[") and token.endswith("]"))]
    return sum(word != word.lower() for word in words) * 100 < max(len(words), 1)
