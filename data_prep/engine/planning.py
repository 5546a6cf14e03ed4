"""Divides corpora into pieces (:mod:`data_prep.sources.pieces`), and decides how many buckets there are.

A large compressed file that can only be read from its start is one piece at first; the stage "cut" splits it into
chunks (:func:`data_prep.text.text_parts.split_file`).
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from bert_pretrain.files.addresses import Address
from data_prep.corpus import corpus_files, file_size
from data_prep.options import CorpusConfig, PrepareConfig
from data_prep.sources.documents import is_json_array
from data_prep.sources.embedded import source_files
from data_prep.sources.pieces import Piece, Span
from data_prep.sources.streams import bz2_streams, is_compressed

_COMPRESSION = 4  # assumed ratio for text
_MOST_SPANS = 2000
_PIECES_PER_BUCKET = 2
_DOCUMENTS_PER_BUCKET = 32  # at least, on average, so that random next segments come from many documents


def plan_pieces(corpora: Mapping[str, CorpusConfig], piece_bytes: int) -> list[Piece]:
    """The pieces of all corpora, numbered in order. Raises ``ConfigError`` for files that cannot be opened."""
    pieces: list[Piece] = []
    for name, corpus in corpora.items():
        spans: list[Span] = []
        total = 0
        for span, size in _spans(corpus, piece_bytes):
            if spans and (total + size > piece_bytes or len(spans) >= _MOST_SPANS):
                pieces.append(Piece(len(pieces), name, corpus, tuple(spans), total))
                spans, total = [], 0
            spans.append(span)
            total += size
        if spans:
            pieces.append(Piece(len(pieces), name, corpus, tuple(spans), total))
    return pieces


def count_tasks(pieces: list[Piece], piece_bytes: int) -> int:
    """About how many tasks the stages will have."""
    return sum(
        1 + _COMPRESSION * piece.size // piece_bytes if needs_chunks(piece, piece_bytes) else 1 for piece in pieces
    )


def needs_chunks(piece: Piece, piece_bytes: int) -> bool:
    """Whether a piece is a large file of many documents that can only be read from its start."""
    span, kind = piece.spans[0], piece.config.kind
    if span.start > 0 or span.stop is not None or kind not in ("text", "jsonl", "csv", "wikipedia"):
        return False
    if is_compressed(span.path):
        return _COMPRESSION * piece.size > 2 * piece_bytes
    return piece.size > 2 * piece_bytes and kind != "text" and not _can_be_cut(span.path, piece.config)


def _can_be_cut(path: Path | Address, corpus: CorpusConfig) -> bool:
    """Whether a document of an uncompressed file can be found without reading the file from its start."""
    if corpus.kind == "text":
        return corpus.documents != "file"
    return corpus.kind == "jsonl" and not is_json_array(path)


def bucket_counts(config: PrepareConfig, documents: int, characters: int) -> tuple[int, int]:
    """The numbers of buckets for the training and the held-out documents.

    A bucket holds the text of two pieces, less if more than five copies of it are used.
    """
    weight = max(corpus.weight for corpus in config.corpora.values())
    size = int(_PIECES_PER_BUCKET * config.piece_bytes * min(1.0, 5 / (config.dupe_factor * weight)))

    def count(share: float) -> int:
        wanted = -(-int(share * characters) // max(1, size))
        return max(1, min(wanted, int(share * documents) // _DOCUMENTS_PER_BUCKET))

    heldout = config.heldout_fraction
    return count(1 - heldout), count(heldout) if heldout > 0 else 0


def _spans(corpus: CorpusConfig, piece_bytes: int) -> Iterator[tuple[Span, int]]:
    """(span, its size in bytes), each about the size of a piece or smaller."""
    if corpus.kind == "embedded":
        for path, title, source in source_files():
            yield Span(path, source=source, title=title), path.stat().st_size if path.exists() else 0
    elif corpus.kind == "parquet":
        from data_prep.sources.tables import row_groups  # slow to load

        for file in corpus_files(corpus):
            yield from _runs(file, row_groups(file), piece_bytes)
    elif corpus.kind == "dataset":
        from data_prep.sources.hub import arrow_files  # slow to load
        from data_prep.sources.tables import record_batches

        for path in arrow_files(str(corpus.path), corpus.subset, corpus.split, corpus.text_field):
            yield from _runs(path, record_batches(path), piece_bytes)
    else:
        for file in corpus_files(corpus):
            yield from _file_spans(file, corpus, piece_bytes)


def _file_spans(path: Path | Address, corpus: CorpusConfig, piece_bytes: int) -> Iterator[tuple[Span, int]]:
    size = file_size(path)
    if corpus.kind == "wikipedia" and path.suffix == ".bz2":
        yield from _streams(path, size, piece_bytes // _COMPRESSION)
    elif size <= piece_bytes or is_compressed(path) or not _can_be_cut(path, corpus):
        yield Span(path), size
    else:
        parts = -(-size // piece_bytes)
        for start, stop in itertools.pairwise(size * part // parts for part in range(parts + 1)):
            yield Span(path, start, stop if stop < size else None), stop - start


def _streams(path: Path | Address, size: int, compressed_bytes: int) -> Iterator[tuple[Span, int]]:
    """A multistream dump as runs of whole streams; any other bz2 file as a whole."""
    starts = bz2_streams(path)
    if len(starts) < 3 or starts[0] != 0:
        yield Span(path), size
        return
    first = 0
    for start in starts[1:]:
        if start - first >= compressed_bytes:
            yield Span(path, first, start), _COMPRESSION * (start - first)
            first = start
    yield Span(path, first), _COMPRESSION * (size - first)


def _runs(path: Path | Address, sizes: list[int], piece_bytes: int) -> Iterator[tuple[Span, int]]:
    """Runs of consecutive row groups or record batches, of at most ``piece_bytes`` unless a single one is larger."""
    start = total = 0
    for number, size in enumerate(sizes):
        if number > start and total + size > piece_bytes:
            yield Span(path, start, number), total
            start, total = number, 0
        total += size
    if len(sizes) > start:
        yield Span(path, start, len(sizes)), total
