"""Planning: corpora -> pieces (:mod:`data_prep.sources.pieces`). The order of the pieces is that of the corpora.

A packed file that cannot be entered in the middle is first cut into chunks (:mod:`data_prep.text.text_parts`), where
it is large.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from bert_pretrain.errors import ConfigError
from data_prep.corpus import corpus_files
from data_prep.options import CorpusConfig
from data_prep.sources.embedded import source_files
from data_prep.sources.pieces import Piece, Span
from data_prep.sources.streams import bz2_streams, is_packed

_PACKED = 4  # text packs to a quarter, roughly
_MOST_SPANS = 2000


def plan_pieces(corpora: Mapping[str, CorpusConfig], piece_bytes: int) -> list[Piece]:
    """The pieces of all corpora, numbered in order. Raises ``ConfigError`` for what cannot be opened."""
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


def count_parts(pieces: list[Piece], piece_bytes: int) -> int:
    """About how many parts the stages will have."""
    return sum(1 + _PACKED * piece.size // piece_bytes if must_be_cut(piece, piece_bytes) else 1 for piece in pieces)


def must_be_cut(piece: Piece, piece_bytes: int) -> bool:
    """Whether a piece is one large packed file without a way in but from its start."""
    span = piece.spans[0]
    whole = span.start == 0 and span.stop is None and piece.config.kind in ("text", "jsonl", "wikipedia")
    return whole and is_packed(span.path) and _PACKED * piece.size > 2 * piece_bytes


def _spans(corpus: CorpusConfig, piece_bytes: int) -> Iterator[tuple[Span, int]]:
    """(span, its size in bytes), each about a piece or smaller."""
    if corpus.kind == "embedded":
        for path, title, source in source_files():
            yield Span(path, source=source, title=title), path.stat().st_size if path.exists() else 0
        return
    if corpus.kind in ("parquet", "dataset"):
        from data_prep.sources.tables import record_batches, row_groups  # here, because it takes long to load

        is_parquet = corpus.kind == "parquet"
        for path in corpus_files(corpus) if is_parquet else _arrow_files(corpus):
            yield from _runs(path, row_groups(path) if is_parquet else record_batches(path), piece_bytes)
        return
    for path in corpus_files(corpus):
        size = path.stat().st_size
        if corpus.kind == "wikipedia" and path.suffix == ".bz2":
            yield from _streams(path, size, piece_bytes // _PACKED)
        elif size <= piece_bytes or is_packed(path) or corpus.kind == "wikipedia" or corpus.documents == "file":
            yield Span(path), size
        else:
            parts = -(-size // piece_bytes)
            cuts = [size * part // parts for part in range(parts)] + [None]
            for start, stop in itertools.pairwise(cuts):
                assert start is not None
                yield Span(path, start, stop), (size if stop is None else stop) - start


def _arrow_files(corpus: CorpusConfig) -> list[Path]:
    options = {name: getattr(corpus, name) for name in ("path", "subset", "split", "text_field")}
    command = [sys.executable, "-m", "data_prep.sources.hub", json.dumps(options)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise ConfigError(found.stderr.strip().splitlines()[-1])
    return [Path(name) for name in json.loads(found.stdout.splitlines()[-1])]


def _streams(path: Path, size: int, packed_bytes: int) -> Iterator[tuple[Span, int]]:
    """A multistream dump in runs of whole streams; another one whole."""
    starts = bz2_streams(path)
    if len(starts) < 3 or starts[0] != 0:
        yield Span(path), size
        return
    first = 0
    for start in starts[1:]:
        if start - first >= packed_bytes:
            yield Span(path, first, start), _PACKED * (start - first)
            first = start
    yield Span(path, first, size if first else None), _PACKED * (size - first)


def _runs(path: Path, sizes: list[int], piece_bytes: int) -> Iterator[tuple[Span, int]]:
    """Consecutive groups of rows, of at most ``piece_bytes`` together where a single one is not more."""
    start = total = 0
    for number, size in enumerate(sizes):
        if number > start and total + size > piece_bytes:
            yield Span(path, start, number), total
            start, total = number, 0
        total += size
    if len(sizes) > start:
        yield Span(path, start, len(sizes)), total
