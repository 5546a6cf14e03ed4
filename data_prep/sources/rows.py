"""Rows of JSON and tables: which fields hold the text, and which rows hold none."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.addresses import Address
from data_prep.sources.cleaning import Dropped
from data_prep.sources.streams import LONGEST_LINE

_SHOWN_FIELDS = 8
_SPACE = re.compile(r"[ \t\r\n]*")  # of JSON
JSON = json.JSONDecoder(parse_int=len)
"""Takes integers of any length, for values that are of no use here."""


class BadRowError(ValueError):
    """A row that cannot be read, or whose field is missing or no text."""

    def __init__(self, reason: str, lines: int = 1) -> None:
        """``lines``: of the file that it takes, each of which may be a row that is lost with it."""
        super().__init__(reason)
        self.lines = lines


def row_text(row: Any, fields: str) -> str:
    """The text of a row, a line for each value; empty if there is none.

    ``fields``: as ``corpus.text_field``. Raises ``BadRowError``.
    """
    return "\n".join(text for name in fields.split("+") for text in _texts(_value(row, name), name))


def _value(row: Any, name: str) -> Any:
    """The value of a field; a dot in ``name`` leads into a nested one unless a field has that very name.

    Of a list of nested rows, the list of their values.
    """
    if isinstance(row, dict) and name in row:
        return row[name]
    first, _, rest = name.partition(".")
    if rest and isinstance(row, dict) and first in row:
        nested = row[first]
        if isinstance(nested, list):
            return [_value(each, rest) for each in nested]
        return None if nested is None else _value(nested, rest)
    names = ", ".join(map(str, list(row)[:_SHOWN_FIELDS])) if isinstance(row, dict) else ""
    has = f"; it has {names}" if names else ""
    raise BadRowError(f"no field {name!r} (corpus.text_field){has}")


def _texts(value: Any, name: str) -> list[str]:
    if value is None:
        return []
    texts = []
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, bytes):  # parquet files of some programs do not say that they hold text
            try:
                part = part.decode()
            except UnicodeDecodeError as error:
                raise BadRowError(f"field {name!r} is not UTF-8 ({error.reason})") from None
        if part is not None and not isinstance(part, str):
            raise BadRowError(f"field {name!r} holds {type(part).__name__}, not text (corpus.text_field)")
        texts.append(part)
    return [text for text in texts if text]


@dataclass
class RowCounter:
    """Counts the rows of a piece, and those that are left out."""

    most_bad: float
    """``corpus.bad_rows``."""
    dropped: Dropped
    rows: int = 0
    bad: int = 0
    first: str = ""

    def bad_row(self, where: str, error: BadRowError) -> None:
        """Leave out a row. Raises ``ConfigError`` if none may be."""
        self.rows += error.lines
        self.bad += error.lines
        self.first = self.first or f"{where}: {error}"
        self.dropped.add("bad_row", f"{where}: {error}", error.lines)
        if self.most_bad == 0:
            self.check()

    def row(self, text: str, where: str) -> None:
        """Count a row with its text."""
        self.rows += 1
        if not text.strip():
            self.dropped.add("row_without_text", where)

    def check(self) -> None:
        """Raise ``ConfigError`` if more than the allowed share of the rows were bad."""
        if self.bad > self.most_bad * self.rows:
            raise ConfigError(
                f"{self.first}; {self.bad:,} of {self.rows:,} rows here cannot be used, and corpus.bad_rows allows a "
                f"share of {self.most_bad}"
            )


def json_array(content: Iterable[str]) -> Iterator[Any]:
    """The values of a JSON array, given as blocks of text. Raises ``BadRowError`` where it is broken."""
    text, start, number = "", 0, 0
    blocks = iter(content)

    def read_on() -> bool:
        nonlocal text, start
        block = next(blocks, None)
        text, start = text[start:] + (block or ""), 0
        return block is not None

    def sign() -> str:
        """The next character that is no white space, to which ``start`` is moved; "" at the end."""
        nonlocal start
        while True:
            found = _SPACE.match(text, start)
            start = found.end() if found else start
            if start < len(text) or not read_on():
                return text[start : start + 1]

    def value() -> Any:
        nonlocal start
        while True:
            try:
                found, end = JSON.raw_decode(text, start)
            except (json.JSONDecodeError, RecursionError) as error:
                if len(text) - start > LONGEST_LINE or not read_on():
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else "JSON nested too deep"
                    raise BadRowError(f"value {number} of the array is not JSON ({reason})") from None
                continue
            if end < len(text) or not read_on():  # a number at the end of a block may go on
                start = min(end, len(text))
                return found

    if sign() != "[":
        raise BadRowError("it does not begin with [")
    start += 1
    is_more = sign() != "]"
    while is_more:
        number += 1
        yield value()
        mark = sign()
        if mark not in (",", "]"):
            raise BadRowError(
                f"behind value {number} of the array comes {mark!r}, no comma" if mark else "the array does not end"
            )
        is_more = mark == ","
        start += is_more
        sign()
    start += 1
    if mark := sign():
        raise BadRowError(f"{mark!r} follows the end of the array, after value {number}")


def csv_rows(lines: Iterable[str], path: Path | Address, fields: str) -> Iterator[dict[str, str] | BadRowError]:
    """The rows of a CSV or TSV file, whose first row names the fields; a ``BadRowError`` for each broken one.

    ``fields``: as ``corpus.text_field``. Raises ``ConfigError`` if the first row lacks one, or names it twice.
    """
    csv.field_size_limit(LONGEST_LINE)
    is_tsv = ".tsv" in (suffix.lower() for suffix in path.suffixes)
    reader = csv.reader(lines, csv.excel_tab if is_tsv else csv.excel, strict=True)
    names: list[str] | None = None
    while True:
        before = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # an open quote may have taken many lines
            yield BadRowError(f"not {'TSV' if is_tsv else 'CSV'} ({error})", reader.line_num - before)
            continue
        if names is None:
            names = row
            columns_of(fields, names, path)
        elif row and len(row) != len(names):
            reason = f"{len(row)} fields, but the first row names {len(names)}"
            yield BadRowError(reason, reader.line_num - before)
        elif row:
            yield dict(zip(names, row, strict=True))


def columns_of(fields: str, names: list[str], where: Path | Address | str) -> list[str]:
    """The columns that hold ``fields`` (``corpus.text_field``). Raises ``ConfigError`` if one is missing."""
    columns = []
    for name in fields.split("+"):
        column = name if name in names else name.partition(".")[0]
        if column not in names:
            raise ConfigError(
                f"corpus file {where}: no field {name!r} (corpus.text_field); it has {', '.join(names) or 'none'}"
            )
        if names.count(column) > 1:
            raise ConfigError(f"corpus file {where}: two fields have the name {column!r}; rename one of them")
        columns.append(column)
    return list(dict.fromkeys(columns))
