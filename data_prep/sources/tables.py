"""Parquet files, and the arrow files of ``datasets``: the sizes of their parts, and the text in them.

Import this module only for these kinds of corpora: loading pyarrow takes longer than preparing a small corpus.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.addresses import Address, open_binary
from data_prep.sources.pieces import Span
from data_prep.sources.rows import BadRowError, columns_of

_ROWS = 1024  # read at once


def row_groups(path: Path | Address) -> list[int]:
    """The bytes of each row group of a parquet file. Raises ``ConfigError`` if it cannot be read."""
    try:
        with open_binary(path) as file:
            metadata = pyarrow.parquet.read_metadata(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(
            f"corpus file {path} cannot be read as parquet ({error}); download or copy it again"
        ) from None
    return [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]


def record_batches(path: Path) -> list[int]:
    """The bytes of each record batch of an arrow file."""
    with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
        return [batch.nbytes for batch in reader]


def rows(span: Span, kind: str, fields: str) -> Iterator[dict[str, Any] | BadRowError]:
    """The rows in a span of row groups (kind parquet) or record batches (kind dataset), with the columns of ``fields``.

    In place of one whose text is not UTF-8 a ``BadRowError``. Raises ``ConfigError`` if the file is damaged or a column
    is missing.
    """
    path = span.path
    assert span.stop is not None
    try:
        if kind == "dataset":
            with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
                columns = columns_of(fields, reader.schema.names, path)
                for number, batch in enumerate(reader):
                    if span.start <= number < span.stop:
                        yield from _as_python(batch.select(columns))
            return
        with open_binary(path) as source, pyarrow.parquet.ParquetFile(source) as file:
            columns = columns_of(fields, file.schema_arrow.names, path)
            for batch in file.iter_batches(_ROWS, range(span.start, span.stop), columns):
                yield from _as_python(batch)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(
            f"corpus file {path} is damaged in row groups {span.start} to {span.stop - 1} ({error}); download or copy "
            "it again"
        ) from None


def _as_python(batch: pyarrow.RecordBatch) -> list[dict[str, Any] | BadRowError]:
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [BadRowError(f"its text is not UTF-8 ({error.reason})")]
        return [row for number in range(len(batch)) for row in _as_python(batch.slice(number, 1))]
