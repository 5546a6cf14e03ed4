"""A piece: the part of a corpus that one task reads, about ``piece_mb`` of text, as one or more spans of files."""

from dataclasses import dataclass, field
from pathlib import Path

from bert_pretrain.files.addresses import Address
from data_prep.options import CorpusConfig


@dataclass(frozen=True)
class Span:
    """A range of a file, [start, stop); ``stop`` None means its end.

    Counted in bytes (text, JSON lines, compressed bytes of a multistream dump, cut between streams), row groups
    (parquet) or record batches (arrow). Other files are always read whole.
    """

    path: Path | Address
    start: int = 0
    stop: int | None = None
    source: str | None = None  # corpus=embedded: the package
    title: str | None = None  # corpus=embedded: the document's name


@dataclass(frozen=True)
class Piece:
    """The part of a corpus that one task reads."""

    number: int
    corpus: str
    config: CorpusConfig = field(repr=False)
    spans: tuple[Span, ...]
    size: int  # bytes of the files
    is_chunk: bool = False  # the spans are chunks of :func:`data_prep.text.text_parts.split_file`

    @property
    def name(self) -> str:
        """Sorts like ``number``."""
        return f"{self.number:06d}"
