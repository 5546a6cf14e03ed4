"""``data.kind=pretokenised``: rows of token ids, of the ``datasets`` library, as a sequence of samples.

Shards are shuffled when they are written and read in blocks; these rows lie in the order that they were made in. So a
fixed permutation stands between sample numbers and rows, whose files are memory-mapped: every read is random access.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bert_pretrain.data.masking import DynamicMasking
from bert_pretrain.data.masking_rule import MaskingRule
from bert_pretrain.data.ready_made_options import ReadyMadeConfig
from bert_pretrain.data.row_source import RowSource, check_column, fingerprint
from bert_pretrain.data.sample_order import hash64
from bert_pretrain.data.samples import RowCutter, unmasked
from bert_pretrain.data.shards import Arrays
from bert_pretrain.errors import ConfigError

_FIRST_ROWS = 1000  # looked at for special tokens and padding
_ROWS_PER_READ = 10_000
_HASHED_ROWS = 64
_SHUFFLE = hash64(0x726F7773)


def ids_of(table: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """All ids of a pyarrow table's only column, one row after the other, and the length of each row (n,)."""
    import pyarrow.compute as pc

    column = table.column(0)
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    values = pc.list_flatten(column)
    if values.null_count:
        raise ConfigError(f"{where} has null among its ids; allowed: whole numbers")
    return values.to_numpy(), lengths


class TokenRows:
    """One split of a data set, its columns reduced to the one with the ids."""

    def __init__(self, source: RowSource, split: str, config: ReadyMadeConfig) -> None:
        """Raises ``ConfigError`` if the column is missing or does not hold lists of whole numbers."""
        import pyarrow as pa

        def fits(kind: Any) -> bool:
            lists = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
            return any(is_list(kind) for is_list in lists) and pa.types.is_integer(kind.value_type)

        self.where = f"{source.where}, split {split}, column {config.rows_column}"
        found = source.opened(split, streaming=False)
        check_column(found.features.arrow_schema, config, f"{source.where}, split {split}", fits, "lists of integers")
        self.unread = sorted(set(found.column_names) - {config.rows_column})
        self._rows = found.select_columns(config.rows_column).with_format("arrow")
        self.count = len(found)
        self.bytes = int(found.data.nbytes)
        if not self.count:
            raise ConfigError(f"{self.where} has no rows")

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """The ids of some rows, in that order."""
        values, lengths = ids_of(self._rows[rows.tolist()], self.where)
        return np.split(values, np.cumsum(lengths)[:-1])

    def parts(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """All rows: the number of the first, their ids, their lengths."""
        for start in range(0, self.count, _ROWS_PER_READ):
            yield start, *ids_of(self._rows[start : start + _ROWS_PER_READ], self.where)


def stores_special_tokens(rows: TokenRows, special: tuple[int, int], pad: int) -> tuple[bool, bool]:
    """Whether one of ``special`` is in one of the first 1,000 rows, and whether one ends with padding."""
    first = rows.take(np.arange(min(rows.count, _FIRST_ROWS)))
    stored = any(np.isin(row, special).any() for row in first)
    return stored, any(len(row) > 0 and row[-1] == pad for row in first)


def scan(rows: TokenRows, cutter: RowCutter, tokens: int, content: bool) -> tuple[np.ndarray, np.ndarray]:
    """The length of each row and its number of samples, (n,) int64 each.

    ``content``: read all ids, not only where rows begin and end; then padding at their ends does not count. Raises
    ``ConfigError`` if an id that was read is not below ``tokens``.
    """
    lengths = np.zeros(rows.count, np.int64)
    pieces = np.zeros(rows.count, np.int64)
    for start, ids, stored in rows.parts():
        ends = np.cumsum(stored)
        starts = ends - stored
        if content:
            wrong = np.flatnonzero((ids < 0) | (ids >= tokens))
            if len(wrong):
                _refuse(rows, start + int(np.searchsorted(ends, wrong[0], side="right")), int(ids[wrong[0]]), tokens)
            kept = np.flatnonzero(ids != cutter.pad)
            last = np.append(-1, kept)[np.searchsorted(kept, ends)]  # the last id before each end that is no padding
            stored = np.maximum(last + 1 - starts, 0)
        framed = np.zeros(len(stored), np.bool_)
        some = np.flatnonzero(stored > 1)
        framed[some] = (ids[starts[some]] == cutter.cls) & (ids[starts[some] + stored[some] - 1] == cutter.sep)
        part = slice(start, start + len(stored))
        lengths[part], pieces[part] = stored, cutter.pieces(stored, framed)
    return lengths, pieces


def _refuse(rows: TokenRows, row: int, found: int, tokens: int) -> None:
    raise ConfigError(
        f"{rows.where}: row {row} holds {found}, but data.tokenizer has the ids 0 to {tokens - 1}; give the tokenizer "
        "that the rows were made with"
    )


class TokenSamples:
    """The samples of some rows, shuffled once and for all: what ``ShardSet`` is for shards."""

    def __init__(
        self,
        rows: TokenRows,
        pieces: np.ndarray,
        lengths: np.ndarray,
        cutter: RowCutter,
        rule: MaskingRule,
        tokens: int,
        vocab_hash: str,
    ) -> None:
        """``pieces`` (n,): samples of each row, 0 for those of another split; ``tokens``: all ids are below."""
        self._rows = rows
        self._cutter = cutter
        self._rule = rule
        self._tokens = tokens
        self._bounds = np.cumsum(np.append(0, pieces))
        self.samples = int(self._bounds[-1])
        self.max_predictions = rule.max_predictions
        shuffled = np.random.Generator(np.random.Philox(key=_SHUFFLE)).permutation(self.samples)
        self._order = shuffled.astype(np.uint32 if self.samples < 1 << 32 else np.int64)
        sampled = rows.take(np.unique(np.linspace(0, rows.count - 1, _HASHED_ROWS).astype(np.int64)))
        self.fingerprint = fingerprint(vocab_hash, pieces, lengths, *sampled)
        self.masking: DynamicMasking | None = None
        """Masks that ``read`` draws, always the same, for evaluation; None: ``read`` masks nothing."""

    def read(self, start: int, stop: int) -> Arrays:
        """Samples ``start`` to ``stop``; past the end it continues at sample 0. Raises ``ConfigError``."""
        numbers = np.arange(start, stop) % self.samples
        places = self._order[numbers].astype(np.int64)
        rows = np.searchsorted(self._bounds, places, side="right") - 1
        pieces = places - self._bounds[rows]
        samples = []
        for row, piece, ids in zip(rows, pieces, self._rows.take(rows), strict=True):
            kept = np.flatnonzero(ids != self._cutter.pad)
            sample = self._cutter.piece(ids[: kept[-1] + 1 if len(kept) else 0], int(piece))
            if len(wrong := sample[(sample < 0) | (sample >= self._tokens)]):
                _refuse(self._rows, int(row), int(wrong[0]), self._tokens)
            samples.append(sample)
        arrays = unmasked(samples, self._cutter.length, self._rule, self._cutter.pad)
        return arrays if self.masking is None else self.masking(arrays, 0, numbers)
