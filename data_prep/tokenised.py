"""The corpus after tokenising: flat arrays in ``.npy`` files that are mapped, not loaded.

ids.npy         (T,)    token ids of all sentences, one after the other, no special tokens
sentences.npy   (S+1,)  where each sentence starts in ids; the last entry is T
documents.npy   (D+1,)  where each document starts in sentences; the last entry is S
heldout.npy     (D,)    true where the document belongs to the held-out split
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from data_prep.tokenizer import Vocabulary, encode_batch

_NAMES = ("ids", "sentences", "documents", "heldout")
_CHARACTERS_PER_BATCH = 4_000_000


@dataclass(frozen=True)
class TokenisedCorpus:
    """The four arrays, mapped read-only; see the head of this module."""

    ids: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    heldout: np.ndarray


@dataclass
class TokenCounts:
    """What the encoding stage saw."""

    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    heldout_documents: int = 0
    sentences_dropped_without_tokens: int = 0
    documents_dropped_without_tokens: int = 0


class ArrayWriter:
    """Appends to a one-dimensional ``.npy`` file whose length is not known before its end."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self.count = 0
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115  closed by __exit__
        self._write_header()

    def _write_header(self) -> None:
        # numpy leaves room in the header for the length to grow, so that the second one fits over the first
        description = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": description, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: np.ndarray) -> None:
        """Add ``values`` (n,) at the end."""
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.count += len(values)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()


def is_heldout(sentences: list[str], seed: int, fraction: float) -> bool:
    """Whether a document is held out: a pure function of its sentences and the seed; equal documents stay together."""
    digest = hashlib.blake2b("\n".join(sentences).encode(), digest_size=8, key=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little") < fraction * 2.0**64


def tokenise(
    documents: Iterable[list[str]], vocabulary: Vocabulary, folder: Path, seed: int, heldout_fraction: float
) -> TokenCounts:
    """Encode documents (lists of sentences) into the arrays in ``folder``, in bounded memory.

    Sentences without tokens (control characters only), and documents without sentences, are dropped and counted.
    """
    counts = TokenCounts()
    unknown = vocabulary.tokens.index("[UNK]")
    with (
        ArrayWriter(folder / "ids.npy", np.dtype(vocabulary.id_dtype)) as ids,
        ArrayWriter(folder / "sentences.npy", np.dtype(np.int64)) as sentences,
        ArrayWriter(folder / "documents.npy", np.dtype(np.int64)) as boundaries,
        ArrayWriter(folder / "heldout.npy", np.dtype(np.bool_)) as heldout,
    ):
        sentences.append(np.zeros(1))
        boundaries.append(np.zeros(1))
        for batch in _document_batches(documents):
            flat, lengths = encode_batch(vocabulary, [sentence for document in batch for sentence in document])
            kept = lengths > 0
            stops = np.cumsum([len(document) for document in batch])
            kept_per_document = np.diff(np.concatenate([[0], np.cumsum(kept)])[np.concatenate([[0], stops])])
            filled = kept_per_document > 0
            flags = np.array([is_heldout(document, seed, heldout_fraction) for document in batch])[filled]
            sentences.append(counts.tokens + np.cumsum(lengths[kept]))
            boundaries.append(counts.sentences + np.cumsum(kept_per_document[filled]))
            heldout.append(flags)
            ids.append(flat)
            counts.tokens += len(flat)
            counts.sentences += int(kept.sum())
            counts.documents += int(filled.sum())
            counts.heldout_documents += int(flags.sum())
            counts.unknown_tokens += int(np.count_nonzero(flat == unknown))
            counts.sentences_dropped_without_tokens += int(np.count_nonzero(~kept))
            counts.documents_dropped_without_tokens += int(np.count_nonzero(~filled))
    return counts


def _document_batches(documents: Iterable[list[str]]) -> Iterable[list[list[str]]]:
    batch: list[list[str]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += sum(map(len, document))
        if size >= _CHARACTERS_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def open_tokenised(folder: Path) -> TokenisedCorpus:
    """Map the arrays of a finished tokenised corpus."""
    return TokenisedCorpus(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _NAMES))
