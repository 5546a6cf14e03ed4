"""Embeddings for another vocabulary or for longer sequences, made of those that a model has learned."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pretrain.errors import ConfigError, on_one_line

ALL: tuple[int, ...] = ()
"""The row is the mean of all old rows."""
PADDING: tuple[int, ...] = (-1,)
"""The row belongs to no token."""


@dataclass(frozen=True)
class RowMap:
    """For each row of the new embeddings, the old rows whose mean it is."""

    rows: list[tuple[int, ...]]
    kept: int = 0
    """Tokens that both vocabularies have."""
    made: int = 0
    """New tokens that are means of pieces."""

    @classmethod
    def unchanged(cls, size: int) -> "RowMap":
        """The first ``size`` rows as they are."""
        return cls([(row,) for row in range(size)])

    def is_identity(self, old_size: int, size: int) -> bool:
        """Whether nothing changes."""
        return old_size == size and all(parts == (row,) for row, parts in enumerate(self.rows))

    def means(self, old: Tensor, padding: str = "mean") -> Tensor:
        """New rows from ``old`` (V, ...); of rows without a token the mean, or the lowest value of all."""
        mean = old.double().mean(0).to(old.dtype)
        made = {ALL: mean, PADDING: mean if padding == "mean" else old.min()}

        def row(parts: tuple[int, ...]) -> Tensor:
            if parts in made:
                return made[parts]
            return old[parts[0]] if len(parts) == 1 else old[list(parts)].double().mean(0).to(old.dtype)

        return torch.stack([row(parts) for parts in self.rows])

    def description(self, name: str, old_size: int, size: int) -> list[str]:
        """What changes, in one sentence; empty if nothing does."""
        if self.is_identity(old_size, size):
            return []
        unknown, empty = self.rows.count(ALL), self.rows.count(PADDING)
        return [
            f"vocabulary: {size:,} entries, {old_size:,} in {name}; {self.kept:,} tokens keep their embedding, "
            f"{self.made:,} new ones start as the mean of their pieces, {unknown:,} with unknown pieces as the mean of "
            f"all, {empty:,} entries have no token"
        ]


def map_rows(new: dict[str, int], old: dict[str, int], folder: Path, old_size: int, size: int) -> RowMap:
    """The rows for the tokens ``new`` from those of ``old``, the tokenizer in ``folder`` of a model of ``old_size``."""
    pieces: Callable[[str], list[int]] | None = None
    named, rows = set(old.values()), [PADDING] * size
    for row in range(min(size, old_size)):
        if row not in named:
            rows[row] = (row,)  # an entry without a token stays as it is
    kept = made = 0
    for token, number in new.items():
        if old.get(token, old_size) < old_size:
            rows[number], kept = (old[token],), kept + 1
            continue
        pieces = pieces or old_pieces(folder, old)
        parts = tuple(piece for piece in pieces(token) if piece < old_size)
        rows[number], made = parts or ALL, made + bool(parts)
    return RowMap(rows, kept, made)


def old_pieces(folder: Path, vocabulary: dict[str, int]) -> Callable[[str], list[int]]:
    """A function from a token to the ids of its pieces under the tokenizer in ``folder``, without unknown ones.

    A continuation (``##ing``) is cut into continuations. Raises ``ConfigError`` if the tokenizer does not load.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        backend = tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
    except (OSError, ValueError, AttributeError, ImportError) as error:
        reason = on_one_line(error)
        raise ConfigError(f"the tokenizer in {folder} does not load ({reason}); it is needed for new tokens") from None
    unknown = tokenizer.unk_token_id

    def pieces(token: str) -> list[int]:
        if not token.startswith("##") or token == "##":
            return [piece for piece in backend.encode(token, add_special_tokens=False).ids if piece != unknown]
        text = token[2:] if backend.normalizer is None else backend.normalizer.normalize_str(token[2:])
        return _continuations(text, vocabulary)

    return pieces


def _continuations(text: str, vocabulary: dict[str, int]) -> list[int]:
    """WordPiece within a word, the longest match first; nothing if a part is unknown."""
    found, start = [], 0
    while start < len(text):
        ends = range(len(text), start, -1)
        end = next((end for end in ends if f"##{text[start:end]}" in vocabulary), None)
        if end is None:
            return []
        found.append(vocabulary[f"##{text[start:end]}"])
        start = end
    return found


def extended_positions(learned: Tensor, size: int, how: str | None) -> Tensor:
    """``size`` position embeddings from the ``learned`` (P, H).

    Fewer: the first ones. More: ``repeat`` (row i is row i mod P), or ``interpolate`` linearly, so that the first and
    the last row stay the first and the last. Raises ``ConfigError`` for more without ``how``.
    """
    if size <= len(learned):
        return learned[:size].clone()
    if how == "repeat":
        return learned[torch.arange(size) % len(learned)]
    if how != "interpolate":
        raise ConfigError(
            f"model.max_position_embeddings is {size}, but init_from has {len(learned)}; give init_positions="
            "interpolate or repeat"
        )
    columns = learned.double().T[None]  # (1, H, P)
    return F.interpolate(columns, size, mode="linear", align_corners=True)[0].T.to(learned.dtype)
