"""A piece: what one worker reads at a time of a corpus, about ``piece_mb`` of it.

A piece is one or more spans. What a span's numbers count depends on the file: bytes of plain text and JSON lines,
bytes of a multistream dump (between streams), row groups of parquet, record batches of arrow, nothing for the rest.
"""

from dataclasses import dataclass, field
from pathlib import Path

from data_prep.options import CorpusConfig


@dataclass(frozen=True)
class Span:
    """Part of a file; ``stop`` None is its end. ``source`` and ``title`` are those of embedded prose."""

    path: Path
    start: int = 0
    stop: int | None = None
    source: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Piece:
    """What one worker reads at a time. ``size`` is in bytes of the files."""

    number: int
    corpus: str
    config: CorpusConfig = field(repr=False)
    spans: tuple[Span, ...]
    size: int
    is_cut: bool = False  # the spans are chunks of documents

    @property
    def name(self) -> str:
        """Sorts as the number does."""
        return f"{self.number:06d}"
