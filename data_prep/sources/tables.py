"""Parquet files, and the arrow files of ``datasets``: the sizes of their parts, and the text in them.

Import this module only for these kinds of corpora: loading pyarrow takes longer than preparing a small corpus.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from bert_pretrain.errors import ConfigError
from data_prep.sources.pieces import Span

_ROWS = 1024  # read at once


def row_groups(path: Path) -> list[int]:
    """The bytes of each row group of a parquet file. Raises ``ConfigError`` if it cannot be read."""
    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(
            f"corpus file {path} cannot be read as parquet ({error}); download or copy it again"
        ) from None
    return [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]


def record_batches(path: Path) -> list[int]:
    """The bytes of each record batch of an arrow file."""
    with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
        return [batch.nbytes for batch in reader]


def texts(span: Span, kind: str, field: str) -> Iterator[str | None]:
    """The texts in a span of row groups (kind parquet) or record batches (kind dataset); null is None.

    Raises ``ConfigError`` if the file is damaged or ``field`` is missing or not text.
    """
    path = span.path
    assert span.stop is not None
    try:
        if kind == "dataset":
            with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
                for number, batch in enumerate(reader):
                    if span.start <= number < span.stop:
                        yield from _strings(batch.column(field), path, field)
            return
        with pyarrow.parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise ConfigError(f"corpus file {path}: no field {field!r} (corpus.text_field); it has {names}")
            for batch in file.iter_batches(_ROWS, range(span.start, span.stop), [field]):
                yield from _strings(batch.column(0), path, field)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(
            f"corpus file {path} is damaged in row groups {span.start} to {span.stop - 1} ({error}); download or copy "
            "it again"
        ) from None


def _strings(column: pyarrow.Array, path: Path, field: str) -> list[str | None]:
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        raise ConfigError(f"corpus file {path}: field {field!r} holds {column.type}, not text (corpus.text_field)")
    values: list[str | None] = column.to_pylist()
    return values
