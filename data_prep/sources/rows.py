"""Rows of JSON and tables: which fields hold the text, and which rows hold none."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pretrain.addresses import Address
from bert_pretrain.errors import ConfigError
from data_prep.sources.cleaning import Dropped
from data_prep.sources.streams import LONGEST_LINE

_SHOWN_FIELDS = 8


class BadRowError(ValueError):
    """A row that cannot be read, or whose field is missing or no text."""


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
    values = value if isinstance(value, list) else [value]
    for part in values:
        if part is not None and not isinstance(part, str):
            raise BadRowError(f"field {name!r} holds {type(part).__name__}, not text (corpus.text_field)")
    # JSON can escape one half of a surrogate pair
    return [part.encode("utf-8", "replace").decode() for part in values if part]


@dataclass
class RowCounter:
    """Counts the rows of a piece, and those that are left out."""

    most_bad: float
    """``corpus.bad_rows``."""
    dropped: Dropped
    rows: int = 0
    bad: int = 0
    first: str = ""

    def bad_row(self, where: str, reason: object) -> None:
        """Leave out a row. Raises ``ConfigError`` if none may be."""
        self.rows += 1
        self.bad += 1
        self.first = self.first or f"{where}: {reason}"
        self.dropped.add("bad_row", f"{where}: {reason}")
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
    decoder, text, start, at_end = json.JSONDecoder(), "", 0, False
    blocks = iter(content)
    opened, number = False, 0
    while True:
        while start < len(text) and text[start] in " \t\r\n,[" and (text[start] != "[" or not opened):
            opened = opened or text[start] == "["
            start += 1
        if text[start : start + 1] == "]":
            return
        try:
            if start == len(text):
                raise json.JSONDecodeError("the array does not end", text, start)
            value, end = decoder.raw_decode(text, start)
            if end == len(text) and not at_end:  # a number may go on
                raise json.JSONDecodeError("cut", text, end)
        except (json.JSONDecodeError, RecursionError) as error:
            more = next(blocks, None)
            if more is None and not at_end:
                at_end = True
                continue
            if more is None or len(text) - start > LONGEST_LINE:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else "JSON nested too deep"
                raise BadRowError(f"value {number + 1} of the array is not JSON ({reason})") from None
            text, start = text[start:] + more, 0
            continue
        number += 1
        yield value
        start = end


def csv_rows(lines: Iterable[str], path: Path | Address) -> Iterator[dict[str, str] | BadRowError]:
    """The rows of a CSV or TSV file, whose first row names the fields; a ``BadRowError`` for each broken one."""
    csv.field_size_limit(LONGEST_LINE)
    is_tsv = ".tsv" in (suffix.lower() for suffix in path.suffixes)
    reader = csv.reader(lines, csv.excel_tab if is_tsv else csv.excel, strict=True)
    names: list[str] | None = None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRowError(f"not {'TSV' if is_tsv else 'CSV'} ({error})")
            continue
        if names is None:
            names = row
        elif row and len(row) != len(names):
            yield BadRowError(f"{len(row)} fields, but the first row names {len(names)}")
        elif row:
            yield dict(zip(names, row, strict=True))
