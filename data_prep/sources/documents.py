"""Readers: a piece of a corpus -> its documents, each a list of paragraphs (or of finished sentences).

Text and JSON lines in UTF-8, with or without a byte order mark, with any of the usual line ends, plain or packed;
parquet and arrow tables; Wikipedia's dumps; and the prose that is installed with the packages.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bert_pretrain.errors import ConfigError
from data_prep.sources.cleaning import Dropped
from data_prep.sources.embedded import module_paragraphs
from data_prep.sources.pieces import Piece, Span
from data_prep.sources.streams import blocks, decode, lines
from data_prep.sources.wikipedia import read_pages, why_no_article

LONGEST_DOCUMENT = 8_000_000  # characters; a longer one (War and Peace has 3 million) goes on as the next document


@dataclass(frozen=True)
class Document:
    """One document: its name, the name of its source, and its paragraphs (or sentences) without line breaks."""

    name: str
    source: str
    paragraphs: list[str]
    split: bool = True  # False: the paragraphs are sentences already
    is_wikitext: bool = False  # the one paragraph is the wikitext of an article


def read_piece(piece: Piece, dropped: Dropped) -> Iterator[Document]:
    """The documents of a piece, in order, as clean as their source; what is left out is counted in ``dropped``.

    Empty documents are not yielded. Raises ``ConfigError``, with file and position, for what is not UTF-8 text, is
    damaged, or is not an object with the text field.
    """
    for raw in read_raw(piece, dropped):
        yield from readable(raw, dropped)


def read_raw(piece: Piece, dropped: Dropped) -> Iterator[Document]:
    """As :func:`read_piece`, but wikitext stays as it is: what can be cut into chunks fast."""
    for span in piece.spans:
        if piece.is_cut:
            yield from read_chunk(span.path)
        elif piece.config.kind == "embedded":
            yield Document(str(span.title), str(span.source), list(dict.fromkeys(module_paragraphs(span.path))))
        elif piece.config.kind == "wikipedia":
            yield from _articles(span, piece.corpus, dropped)
        elif piece.config.kind in ("parquet", "dataset"):
            yield from _rows(span, piece)
        elif piece.config.kind == "jsonl":
            yield from _json_documents(span, piece, dropped)
        else:
            yield from _text_documents(span, piece, dropped)


def readable(raw: Document, dropped: Dropped) -> Iterator[Document]:
    """A document without its markup; none where it is empty, several where it is huge."""
    document = _without_markup(raw, dropped) if raw.is_wikitext else raw
    if document.paragraphs:
        yield from _bounded(document, dropped)


def write_chunk(documents: list[Document]) -> bytes:
    """A chunk of a cut file, as :func:`read_chunk` reads it back."""
    rows = [[d.name, d.source, d.paragraphs, d.split, d.is_wikitext] for d in documents]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read_chunk(path: Path) -> Iterator[Document]:
    """The documents of a chunk."""
    for _, raw in lines(blocks(path)):
        if raw:
            yield Document(*json.loads(raw))


def _bounded(document: Document, dropped: Dropped) -> Iterator[Document]:
    """Divide a huge document at its paragraphs; nothing is lost."""
    start = size = 0
    for number, paragraph in enumerate(document.paragraphs):
        if number > start and size + len(paragraph) > LONGEST_DOCUMENT:
            dropped.add("documents_divided", document.name)
            yield replace(document, paragraphs=document.paragraphs[start:number])
            start, size = number, 0
        size += len(paragraph)
    yield replace(document, paragraphs=document.paragraphs[start:])


def _decoded_lines(span: Span, needs_blank: bool, dropped: Dropped) -> Iterator[tuple[int, int, str]]:
    """(line number, byte position, line) of a span.

    A span that starts within the file begins after the first whole line at or behind its start (with
    ``needs_blank``, after the first blank one), and ends where the next span begins.
    """
    begin = max(0, span.start - 1)
    waiting = span.start > 0
    if waiting and not any(b"\n" in block for block in blocks(span.path, begin, span.stop)):
        return  # within one line, which the span where it starts reads to its end
    for number, (position, raw) in enumerate(lines(blocks(span.path, begin), begin), start=1):
        if position < span.start:
            waiting = needs_blank  # the rest of a line that belongs to the span before
            continue
        if span.stop is not None and position >= span.stop and (waiting or not needs_blank):
            return
        if raw is None:
            dropped.add("line_too_long", f"{span.path}, the line at byte {position}")
            continue
        is_blank = not raw.strip()
        if not waiting:
            yield number, position, decode(raw, span.path, position).rstrip("\r")
        waiting = waiting and not is_blank
        if needs_blank and is_blank and span.stop is not None and position >= span.stop:
            return


def _text_documents(span: Span, piece: Piece, dropped: Dropped) -> Iterator[Document]:
    """Documents of text, by ``corpus.documents`` and ``corpus.lines``."""
    corpus = piece.config
    per_file = corpus.documents == "file"
    paragraphs: list[str] = []
    wrapped: list[str] = []
    size = 0

    def finished() -> Iterator[Document]:
        if paragraphs:
            yield Document(f"{span.path.name}#{position}", piece.corpus, list(paragraphs), corpus.lines != "sentence")
        paragraphs.clear()

    position = 0
    for _, position, line in _decoded_lines(span, not per_file, dropped):
        for part in line.split("\r") if "\r" in line else (line,):  # the line ends of old Macs
            text = " ".join(part.split())
            size += len(text)
            if text and corpus.lines == "wrapped":
                wrapped.append(text)
            elif text:
                paragraphs.append(text)
            too_long = size > LONGEST_DOCUMENT
            if wrapped and (not text or too_long):
                paragraphs.append(" ".join(wrapped))
                wrapped = []
            if (not text and not per_file) or too_long:
                if too_long:
                    dropped.add("documents_divided", f"{span.path}, before byte {position}")
                yield from finished()
                size = 0
    if wrapped:
        paragraphs.append(" ".join(wrapped))
    yield from finished()


def _paragraphs(text: str) -> list[str]:
    """The non-empty lines of a text, white space as single spaces."""
    return [paragraph for line in text.splitlines() if (paragraph := " ".join(line.split()))]


def _json_documents(span: Span, piece: Piece, dropped: Dropped) -> Iterator[Document]:
    """One document a line; every line of its text is a paragraph."""
    field, path = piece.config.text_field, span.path
    for number, position, line in _decoded_lines(span, False, dropped):
        if not line.strip():
            continue
        where = f"line {number}" if span.start == 0 else f"the line at byte {position}"
        try:
            text = json.loads(line)[field]
        except json.JSONDecodeError as error:
            raise ConfigError(f"corpus file {path}, {where}: not JSON ({error.msg}, column {error.colno})") from None
        except (KeyError, TypeError, IndexError):
            raise ConfigError(f"corpus file {path}, {where}: no field {field!r} (corpus.text_field)") from None
        except RecursionError:
            raise ConfigError(f"corpus file {path}, {where}: JSON nested too deep") from None
        if not isinstance(text, str):
            raise ConfigError(f"corpus file {path}, {where}: field {field!r} is no string")
        text = text.encode("utf-8", "replace").decode()  # JSON can escape half a surrogate pair, which is no character
        yield Document(f"{path.name}#{position}", piece.corpus, _paragraphs(text))


def _rows(span: Span, piece: Piece) -> Iterator[Document]:
    """One document a row of a parquet or arrow file; null is an empty document."""
    from data_prep.sources.tables import texts  # here, because it takes long to load

    for row, text in enumerate(texts(span, piece.config.kind, piece.config.text_field), start=1):
        if text is not None:
            yield Document(f"{span.path.name}#{span.start}.{row}", piece.corpus, _paragraphs(text))


def _articles(span: Span, corpus: str, dropped: Dropped) -> Iterator[Document]:
    parts = blocks(span.path, span.start, span.stop)
    for page in read_pages(parts, span.path, span.start == 0, span.start == 0 and span.stop is None):
        rule = why_no_article(page)
        if rule is None:
            yield Document(page.title, corpus, [page.text], is_wikitext=True)
        else:
            dropped.add(rule, page.title)


def _without_markup(article: Document, dropped: Dropped) -> Document:
    from data_prep.sources.wikitext import why_no_text, wikitext_paragraphs  # here, because it takes long to load

    kept = []
    for paragraph in wikitext_paragraphs(article.paragraphs[0]):
        rule = why_no_text(paragraph)
        if rule is None:
            kept.append(paragraph)
        else:
            dropped.add(rule, paragraph)
    return replace(article, paragraphs=kept, is_wikitext=False)
