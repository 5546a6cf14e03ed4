"""Reads a piece of a corpus: spans of files -> documents, each a list of paragraphs (or of sentences)."""

import codecs
import json
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.addresses import Address
from data_prep.sources.cleaning import Dropped, single_spaced, well_formed
from data_prep.sources.embedded import module_paragraphs
from data_prep.sources.pieces import Piece, Span
from data_prep.sources.rows import JSON, BadRowError, RowCounter, csv_rows, json_array, row_text
from data_prep.sources.streams import BYTE_ORDER_MARK, blocks, decode_lines, line_batches
from data_prep.sources.wikipedia import page_rejected_as, read_pages
from data_prep.sources.wikitext_names import no_text_namespaces

LONGEST_DOCUMENT = 8_000_000  # characters (War and Peace has 3 million); a longer one is divided


@dataclass(frozen=True)
class Document:
    """One document. No paragraph has a line break in it."""

    name: str
    source: str
    paragraphs: list[str]
    needs_splitting: bool = True  # False: the paragraphs are sentences already
    is_wikitext: bool = False  # the only paragraph is the wikitext of an article
    no_text: tuple[str, ...] = ()  # of an article: the dump's namespaces whose links are no text


def read_piece(piece: Piece, dropped: Dropped) -> Iterator[Document]:
    """The non-empty documents of a piece, in order, without markup. What is left out is counted in ``dropped``.

    Raises ``ConfigError``, with file and position, for text that is not UTF-8, for damaged files, and if too many rows
    are broken or lack the text field.
    """
    for raw in read_raw(piece, dropped):
        yield from without_markup(raw, dropped)


def read_raw(piece: Piece, dropped: Dropped) -> Iterator[Document]:
    """As :func:`read_piece` but faster: wikitext is not parsed, huge documents are not divided."""
    for span in piece.spans:
        if piece.is_chunk:
            yield from read_chunk(span.path)
        elif piece.config.kind == "embedded":
            assert isinstance(span.path, Path)
            yield Document(str(span.title), str(span.source), list(dict.fromkeys(module_paragraphs(span.path))))
        elif piece.config.kind == "wikipedia":
            yield from _articles(span, piece.corpus, dropped)
        elif piece.config.kind in ("parquet", "dataset"):
            yield from _row_documents(_table_rows(span, piece), piece, dropped)
        elif piece.config.kind == "jsonl":
            yield from _row_documents(_json_rows(span, dropped), piece, dropped)
        elif piece.config.kind == "csv":
            yield from _row_documents(_csv_rows(span, piece.config.text_field, dropped), piece, dropped)
        else:
            yield from _text_documents(span, piece, dropped)


def without_markup(raw: Document, dropped: Dropped) -> Iterator[Document]:
    """A document of :func:`read_raw` with its wikitext parsed; none if it is empty, several if it is huge."""
    document = _parsed(raw, dropped) if raw.is_wikitext else raw
    if document.paragraphs and sum(map(len, document.paragraphs)) <= LONGEST_DOCUMENT:
        yield document
        return
    start = size = 0
    for number, paragraph in enumerate(document.paragraphs):
        if number > start and size + len(paragraph) > LONGEST_DOCUMENT:
            dropped.add("documents_divided", document.name)
            yield replace(document, paragraphs=document.paragraphs[start:number])
            start, size = number, 0
        size += len(paragraph)
    if document.paragraphs:
        yield replace(document, paragraphs=document.paragraphs[start:])


def write_chunk(documents: list[Document]) -> bytes:
    """Documents as JSON lines, for :func:`read_chunk`. Their names may be of files whose names are not UTF-8."""
    return "".join(json.dumps(astuple(document), ensure_ascii=False) + "\n" for document in documents).encode(
        errors="surrogatepass"
    )


def read_chunk(path: Path | Address) -> Iterator[Document]:
    """The documents of a chunk, each a line of any length."""
    for _, batch in line_batches(blocks(path), longest=sys.maxsize):
        assert batch is not None
        yield from (Document(*json.loads(raw)) for raw in batch if raw)


def _decoded_lines(span: Span, needs_blank: bool, dropped: Dropped) -> Iterator[tuple[int, int, str]]:
    """(line number from the span's start, byte position, line) of the documents that start in a span.

    A span that starts within the file skips to its first line start (with ``needs_blank``, to behind its first blank
    line). Every span reads on past its stop to the end of its last document, which is where the next one begins.
    """
    begin = span.start if span.start == 0 else _line_start(span)
    if begin is None:
        return
    skipping = needs_blank and span.start > 0  # the end of a document that belongs to the span before
    stop = sys.maxsize if span.stop is None else span.stop
    number = 0
    for position, batch in line_batches(blocks(span.path, begin), begin):
        if position >= stop and (skipping or not needs_blank):
            return
        if batch is None:
            number += 1
            dropped.add("line_too_long", f"{span.path}, the line at byte {position}")
            continue
        place = position
        decoded = iter(decode_lines(batch, span.path, position))
        for raw in batch:
            number += 1
            if place >= stop and (skipping or not needs_blank):
                return
            line = next(decoded)
            if not skipping:
                yield number, place, line
            if needs_blank and (skipping or place >= stop) and not raw.strip():
                if place >= stop:
                    return
                skipping = False
            place += len(raw) + 1


def _line_start(span: Span) -> int | None:
    """The position of the first line that starts in a span; None if all of it is part of one line."""
    position = span.start - 1
    for block in blocks(span.path, position, span.stop):
        if b"\n" in block:
            return position + block.index(b"\n") + 1
        position += len(block)
    return None


def _text_documents(span: Span, piece: Piece, dropped: Dropped) -> Iterator[Document]:
    """Documents of text, by ``corpus.documents`` and ``corpus.lines``."""
    corpus = piece.config
    per_file = corpus.documents == "file"
    per_line = corpus.documents == "line"
    paragraphs: list[str] = []
    wrapped: list[str] = []
    size = position = 0

    def finished() -> Iterator[Document]:
        if paragraphs:
            yield Document(f"{span.path.name}#{position}", piece.corpus, list(paragraphs), corpus.lines != "sentence")
        paragraphs.clear()

    for _, position, line in _decoded_lines(span, corpus.documents == "blank_line", dropped):
        for part in line.split("\r") if "\r" in line else (line,):  # line ends of old Macs
            text = single_spaced(part)
            size += len(text)
            if text:
                (wrapped if corpus.lines == "wrapped" else paragraphs).append(text)
            too_long = size > LONGEST_DOCUMENT
            if wrapped and (not text or too_long or per_line):
                paragraphs.append(" ".join(wrapped))
                wrapped = []
            if per_line or (not text and not per_file) or too_long:
                if too_long:
                    dropped.add("documents_divided", f"{span.path}, before byte {position}")
                yield from finished()
                size = 0
    if wrapped:
        paragraphs.append(" ".join(wrapped))
    yield from finished()


def text_paragraphs(text: str) -> list[str]:
    """The non-empty lines of a text, white space as single spaces."""
    return [paragraph for line in well_formed(text).splitlines() if (paragraph := single_spaced(line))]


_Row = tuple[str, str, Any]
"""The name of a row's document, where it is, for messages, and its value, or a ``BadRowError`` in its place."""


def _row_documents(rows: Iterator[_Row], piece: Piece, dropped: Dropped) -> Iterator[Document]:
    """One document a row; every line of its text is a paragraph. Raises ``ConfigError`` if too many rows are bad."""
    counter = RowCounter(piece.config.bad_rows, dropped)
    for name, where, row in rows:
        try:
            if isinstance(row, BadRowError):
                raise row
            text = row_text(row, piece.config.text_field)
        except BadRowError as error:
            counter.bad_row(where, error)
            continue
        counter.row(text, where)
        yield Document(name, piece.corpus, text_paragraphs(text))
    counter.check()


def _json_rows(span: Span, dropped: Dropped) -> Iterator[_Row]:
    """JSON lines, or the values of an array."""
    if span.start == 0 and span.stop is None and is_json_array(span.path):
        yield from _array_rows(span.path)
        return
    for number, position, line in _decoded_lines(span, False, dropped):
        if not line.strip():
            continue
        where = f"corpus file {span.path}, " + (f"line {number}" if span.start == 0 else f"the line at byte {position}")
        row: Any
        try:
            row = JSON.decode(line)
        except json.JSONDecodeError as error:
            row = BadRowError(f"not JSON ({error.msg}, column {error.colno})")
        except RecursionError:
            row = BadRowError("JSON nested too deep")
        yield f"{span.path.name}#{position}", where, row


def is_json_array(path: Path | Address) -> bool:
    """Whether a file of corpus=jsonl holds one JSON array."""
    start = b""
    for block in blocks(path):
        start = (start + block).lstrip()
        if start and not BYTE_ORDER_MARK.startswith(start):
            break
    return start.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")


def _array_rows(path: Path | Address) -> Iterator[_Row]:
    try:
        for number, row in enumerate(json_array(codecs.iterdecode(blocks(path), "utf-8-sig")), start=1):
            yield f"{path.name}#{number}", f"corpus file {path}, value {number}", row
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"corpus file {path} is not UTF-8 ({error.reason}); convert it, for example with iconv"
        ) from None
    except BadRowError as error:  # where the next value starts is unknown
        raise ConfigError(f"corpus file {path}: {error}; mend it, or write one JSON object a line") from None


def _csv_rows(span: Span, fields: str, dropped: Dropped) -> Iterator[_Row]:
    decoded = (f"{line}\n" for _, _, line in _decoded_lines(span, False, dropped))
    for number, row in enumerate(csv_rows(decoded, span.path, fields), start=1):
        yield f"{span.path.name}#{number}", f"corpus file {span.path}, row {number}", row


def _table_rows(span: Span, piece: Piece) -> Iterator[_Row]:
    """Rows of a parquet or arrow file."""
    from data_prep.sources.tables import rows  # slow to load

    for number, row in enumerate(rows(span, piece.config.kind, piece.config.text_field), start=1):
        name = f"{span.path.name}#{span.start}.{number}"
        yield name, f"corpus file {span.path}, row {number} of row group {span.start}", row


def _articles(span: Span, corpus: str, dropped: Dropped) -> Iterator[Document]:
    content = blocks(span.path, span.start, span.stop)
    for page in read_pages(content, span.path, span.start == 0, span.stop is None):
        rule = page_rejected_as(page)
        if rule is None:
            yield Document(page.title, corpus, [page.text], is_wikitext=True, no_text=no_text_namespaces(span.path))
        else:
            dropped.add(rule, page.title)


def _parsed(article: Document, dropped: Dropped) -> Document:
    from data_prep.sources.wikitext import text_rejected_as, wikitext_paragraphs  # slow to load

    kept = []
    for paragraph in wikitext_paragraphs(article.paragraphs[0], article.no_text):
        rule = text_rejected_as(paragraph)
        if rule is None:
            kept.append(paragraph)
        else:
            dropped.add(rule, paragraph)
    return replace(article, paragraphs=kept, is_wikitext=False, no_text=())
