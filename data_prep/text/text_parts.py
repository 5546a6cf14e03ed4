"""The first stage: a piece of a corpus -> clean sentences in a text file, and keys by which repeats are found.

``text/NNNNNN.txt`` holds a sentence a line and a blank line after each document. ``NNNNNN.keys.npz`` beside it holds
the arrays of :func:`data_prep.text.duplicates.part_keys`. Large packed files are cut into chunks before that stage.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from data_prep.options import DuplicateConfig
from data_prep.sources.cleaning import HOLE, Dropped, clean_paragraphs
from data_prep.sources.documents import Document, read_piece, read_raw, write_chunk
from data_prep.sources.pieces import Piece, Span
from data_prep.text.duplicates import part_keys
from data_prep.text.sentences import split_sentences


@dataclass(frozen=True)
class TextJob:
    """One piece to read, and where to write it."""

    piece: Piece
    folder: Path
    duplicates: DuplicateConfig = field(repr=False)

    @property
    def name(self) -> str:
        """As the piece."""
        return self.piece.name

    @property
    def size(self) -> int:
        """Bytes of the corpus."""
        return self.piece.size


@dataclass(frozen=True)
class CutJob:
    """One large packed file to cut into chunks of ``chunk_bytes``."""

    piece: Piece
    folder: Path
    chunk_bytes: int

    @property
    def name(self) -> str:
        """As the piece."""
        return self.piece.name

    @property
    def size(self) -> int:
        """Bytes of the packed file."""
        return self.piece.size


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file that gets its name ``path`` only when it is whole and on disk."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def cut_file(job: CutJob) -> dict[str, Any]:
    """Write the chunks ``<folder>/<piece>_NNNNN.json.zst`` of a packed file; returns their names and sizes."""
    dropped = Dropped()
    names: list[str] = []
    sizes: list[int] = []
    waiting: list[Document] = []
    size = 0

    def flush() -> None:
        name = f"{job.name}_{len(names):05d}.json.zst"
        packed = zstandard.ZstdCompressor(level=3).compress(write_chunk(waiting))
        write_whole(job.folder / name, functools.partial(Path.write_bytes, data=packed))
        names.append(name)
        sizes.append(size)
        waiting.clear()

    for document in read_raw(job.piece, dropped):
        waiting.append(document)
        size += sum(map(len, document.paragraphs))
        if size >= job.chunk_bytes:
            flush()
            size = 0
    if waiting:
        flush()
    return {"chunks": names, "sizes": sizes, **dropped.as_record()}


def chunk_pieces(job: CutJob, record: dict[str, Any]) -> list[Piece]:
    """The pieces that a cut file became; their numbers are to be set."""
    return [
        replace(job.piece, spans=(Span(job.folder / name),), size=size, is_cut=True)
        for name, size in zip(record["chunks"], record["sizes"], strict=True)
    ]


def write_text_part(job: TextJob) -> dict[str, Any]:
    """Read, clean and split one piece; returns what was counted."""
    dropped = Dropped()
    counts = {"documents": 0, "paragraphs": 0, "sentences": 0, "characters": 0}
    by_source: dict[str, dict[str, int]] = {}
    documents: list[list[str]] = []
    for document in read_piece(job.piece, dropped):
        sentences = document_sentences(document, job.piece, dropped, counts)
        if not sentences:
            continue
        characters = sum(map(len, sentences))
        counts["documents"] += 1
        counts["sentences"] += len(sentences)
        counts["characters"] += characters
        source = by_source.setdefault(document.source, {"documents": 0, "characters": 0})
        source["documents"] += 1
        source["characters"] += characters
        documents.append(sentences)
    keys = part_keys(documents, job.duplicates, job.piece.config.drop_repeated_sentences)
    text = "".join("\n".join(sentences) + "\n\n" for sentences in documents).encode()
    write_whole(job.folder / f"{job.name}.txt", functools.partial(Path.write_bytes, data=text))
    write_whole(job.folder / f"{job.name}.keys.npz", lambda path: _save(path, keys))
    return {**counts, "by_source": by_source, **dropped.as_record()}


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def document_sentences(document: Document, piece: Piece, dropped: Dropped, counts: dict[str, int]) -> list[str]:
    """The clean sentences of one document."""
    corpus = piece.config
    if not document.split:
        return clean_paragraphs(document.paragraphs, corpus.cleaning, corpus.language, dropped)
    paragraphs = clean_paragraphs(document.paragraphs, corpus.cleaning, corpus.language, dropped)
    counts["paragraphs"] += len(paragraphs)
    kept = []
    for paragraph in paragraphs:
        for sentence in split_sentences(paragraph, corpus.language):
            if HOLE in sentence:
                dropped.add("sentence_with_formula", sentence)
            else:
                kept.append(sentence)
    return kept
