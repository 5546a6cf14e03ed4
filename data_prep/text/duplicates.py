"""Duplicate documents and, on request, repeated sentences, over all text parts in bounded memory.

Exact duplicates: equal text, ignoring case and white space, by a 64-bit hash. Near duplicates: by the Jaccard
similarity of the sets of word 5-grams, estimated with MinHash (Broder 1997; library ``rensa``) of 20 bands of 6
hashes. Two documents of similarity 0.8 share a band with probability 0.998; documents that share one are compared by
all 120 hashes. The first of the duplicates is kept.

The keys (hashes) are divided by their value into shares of about ``_KEYS_PER_SHARE``, one task each, so that the
memory of a task does not grow with the corpus.

An append looks for the new documents only: among themselves and among those that the set holds already, whose keys
were kept. What is dropped of them is what a preparation of all the text at once would drop.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rensa import RMinHash

from data_prep.array_files import read_arrays
from data_prep.options import DuplicateConfig
from data_prep.sources.letters import split_words

BANDS, ROWS = 20, 6
_SHINGLE = 5  # words
_KEYS_PER_SHARE = 8_000_000
_KEYS_TO_SPARE = 100_000  # of a share, which by chance has more than others
_PAIRS_AT_ONCE = 200_000
_SEED = 42


@dataclass(frozen=True)
class TextPart:
    """One file of the text stage, and where its documents and sentences are in the whole corpus."""

    path: Path
    corpus: str
    first_document: int  # counted over all parts
    first_sentence: int
    documents: int
    sentences: int
    characters: int

    @property
    def keys(self) -> Path:
        """The file with the arrays of :func:`part_keys`."""
        return self.path.with_suffix(".keys.npz")


def numbered_parts(found: Iterable[tuple[Path, str, dict[str, Any]]], known: Sequence[TextPart] = ()) -> list[TextPart]:
    """The parts of these files, corpora and counts; their documents and sentences are numbered behind ``known``."""
    parts = []
    document = sum(part.documents for part in known)
    sentence = sum(part.sentences for part in known)
    for path, corpus, counts in found:
        sizes = counts["documents"], counts["sentences"], counts["characters"]
        parts.append(TextPart(path, corpus, document, sentence, *sizes))
        document += counts["documents"]
        sentence += counts["sentences"]
    return parts


@dataclass(frozen=True)
class KeyShare:
    """Of the keys of all parts, those that leave ``number`` when divided by ``shares``."""

    number: int
    shares: int
    parts: tuple[TextPart, ...] = field(repr=False)
    folder: Path  # for the results
    first_document: int = 0  # those before it, and before the first sentence, were looked for already
    first_sentence: int = 0


def text_key(text: str) -> int:
    """A 64-bit hash of a text, ignoring case."""
    return int.from_bytes(hashlib.blake2b(text.casefold().encode(), digest_size=8).digest(), "little")


def part_keys(documents: Sequence[list[str]], config: DuplicateConfig, sentences_too: bool) -> dict[str, np.ndarray]:
    """The keys of one part of D documents with S sentences. The arrays of what is not looked for have no rows.

    sizes (D,): sentences of each document; documents (D,) uint64; signatures (D, 120) uint32 and bands (D, 20) uint64,
    for near duplicates; sentences (S,) uint64, if ``sentences_too``.
    """
    keys: dict[str, np.ndarray] = {"sizes": np.array([len(document) for document in documents], dtype=np.int64)}
    exact = [text_key(" ".join(document)) for document in documents] if config.exact else []
    keys["documents"] = np.array(exact, dtype=np.uint64)
    signatures = np.empty((len(documents) if config.near else 0, BANDS * ROWS), dtype=np.uint32)
    for row, document in zip(signatures, documents, strict=False):
        row[:] = signature(document)
    keys["signatures"] = signatures
    keys["bands"] = band_keys(keys["signatures"])
    repeated = [text_key(text) for document in documents for text in document] if sentences_too else []
    keys["sentences"] = np.array(repeated, dtype=np.uint64)
    return keys


def signature(sentences: list[str]) -> list[int]:
    """The MinHash (120 values) of a document's word 5-grams, or of all its words if there are fewer.

    In scripts without spaces, of its letters' 5-grams.
    """
    words = split_words(" ".join(sentences).casefold())
    shingles = list(map(" ".join, zip(*(words[start:] for start in range(_SHINGLE)), strict=False)))
    minhash = RMinHash(num_perm=BANDS * ROWS, seed=_SEED)
    minhash.update(shingles or [" ".join(words)])
    return list(minhash.digest())


def band_keys(signatures: np.ndarray) -> np.ndarray:
    """(D, 20) uint64: a hash of each band's number and six values."""
    values = signatures.reshape(len(signatures), BANDS, ROWS).astype(np.uint64)
    keys = np.broadcast_to(np.arange(1, BANDS + 1, dtype=np.uint64), (len(signatures), BANDS)).copy()
    for row in range(ROWS):
        keys = (keys ^ values[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def divide_keys(parts: Sequence[TextPart], folder: Path, keys: int, known: int = 0) -> list[KeyShare]:
    """The shares of ``keys`` keys in all parts, of which the first ``known`` are those of the set before an append."""
    shares = max(1, -(-keys // _KEYS_PER_SHARE))
    firsts = (parts[known].first_document, parts[known].first_sentence)
    return [KeyShare(number, shares, tuple(parts), folder, *firsts) for number in range(shares)]


def find_repeated_documents(share: KeyShare, similarity: float) -> dict[str, int]:
    """Write ``documents_NNNN.npz``: the numbers of duplicate documents (n,), of the first that each repeats (n,), and
    whether each is exact (n,).
    """
    exact, exact_first = repeats(*_keys_and_owners(share, "documents"))
    is_new = exact >= share.first_document
    exact, exact_first = exact[is_new], exact_first[is_new]
    pairs = np.stack(repeats(*_keys_and_owners(share, "bands")), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] >= share.first_document], axis=0)
    starts = range(0, max(1, len(pairs)), _PAIRS_AT_ONCE)
    found = [estimated_similarity(share.parts, pairs[start : start + _PAIRS_AT_ONCE]) for start in starts]
    near, near_first = pairs[np.concatenate(found) >= similarity].T
    with open(share.folder / f"documents_{share.number:04d}.npz", "wb") as file:
        is_exact = np.arange(len(exact) + len(near)) < len(exact)
        first = np.concatenate([exact_first, near_first])
        np.savez(file, repeated=np.concatenate([exact, near]), first=first, is_exact=is_exact)
    return {"exact_pairs": len(exact), "near_candidates": len(pairs), "near_pairs": len(near)}


def find_repeated_sentences(share: KeyShare) -> dict[str, int]:
    """Write ``sentences_NNNN.npy``: the numbers of the sentences that occurred before, ascending."""
    later, _ = repeats(*_keys_and_owners(share, "sentences"))
    later = later[later >= share.first_sentence]
    np.save(share.folder / f"sentences_{share.number:04d}.npy", np.sort(later))
    return {"repeated": len(later)}


def repeats(keys: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of keys (n,) with ascending owners (n,): the owners of keys that an earlier owner has, and that first owner."""
    order = np.argsort(keys, kind="stable")
    fresh = np.ones(len(keys), dtype=np.bool_)
    fresh[1:] = keys[order[1:]] != keys[order[:-1]]
    first = owners[order[np.flatnonzero(fresh)[np.cumsum(fresh) - 1]]] if len(keys) else owners
    later = owners[order]
    again = later != first
    return later[again], first[again]


def _keys_and_owners(share: KeyShare, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The share's keys of the array ``name`` in all parts, and the number of the document or sentence of each."""
    of_document = BANDS if name == "bands" else 1
    most = sum(part.sentences if name == "sentences" else part.documents * of_document for part in share.parts)
    keys = np.empty(most // share.shares + most // (20 * share.shares) + _KEYS_TO_SPARE, dtype=np.uint64)
    owners, count = np.empty(len(keys), dtype=np.int64), 0
    dropped = repeated_documents(share.folder) if name == "sentences" else None
    for part in share.parts:
        found, sizes = read_arrays(part.keys, name, "sizes")
        owner = np.arange(len(found)) + (part.first_sentence if name == "sentences" else part.first_document)
        owner, found = np.repeat(owner, of_document), found.reshape(-1)
        mine = found % np.uint64(share.shares) == share.number
        if dropped is not None and len(found):
            mine &= ~np.repeat(np.isin(part.first_document + np.arange(len(sizes)), dropped), sizes)
        start, count = count, count + int(np.count_nonzero(mine))
        if count > len(keys):  # many equal keys, which are all in one share
            keys, owners = (np.concatenate([array, np.empty(count, array.dtype)]) for array in (keys, owners))
        keys[start:count], owners[start:count] = found[mine], owner[mine]
    return keys[:count], owners[:count]


def estimated_similarity(parts: Sequence[TextPart], pairs: np.ndarray) -> np.ndarray:
    """The share of equal MinHash values of each pair (n, 2) of documents."""
    wanted = np.unique(pairs)
    rows = np.zeros((len(wanted), BANDS * ROWS), dtype=np.uint32)
    for part in parts:
        start, stop = np.searchsorted(wanted, [part.first_document, part.first_document + part.documents])
        if stop > start:
            (signatures,) = read_arrays(part.keys, "signatures")
            rows[start:stop] = signatures[wanted[start:stop] - part.first_document]
    places = np.searchsorted(wanted, pairs)
    return (rows[places[:, 0]] == rows[places[:, 1]]).mean(axis=1) if len(pairs) else np.zeros(0)


def merge_repeated_documents(folder: Path, before: Path | None = None) -> dict[str, int]:
    """Write ``repeated.npy``, the ascending numbers of all documents to drop; return how many are exact and near.

    ``before``: the folder with those of the set before an append, which are not counted again.
    """
    found, exact = [], []
    for path in sorted(folder.glob("documents_*.npz")):
        repeated, is_exact = read_arrays(path, "repeated", "is_exact")
        found.append(repeated)
        exact.append(repeated[is_exact])
    dropped = np.unique(np.concatenate(found))
    same = np.unique(np.concatenate(exact))
    known = [] if before is None else [repeated_documents(before)]
    np.save(folder / "repeated.npy", np.concatenate([*known, dropped]))
    return {"exact_duplicates": len(same), "near_duplicates": len(dropped) - len(same)}


def repeated_documents(folder: Path) -> np.ndarray:
    """The ascending numbers of the documents to drop, counted over all parts."""
    (numbers,) = read_arrays(folder / "repeated.npy")
    return numbers


def repeated_sentences(folder: Path, start: int, stop: int) -> Iterator[int]:
    """The numbers of the sentences to drop, from ``start`` up to ``stop``."""
    for path in sorted(folder.glob("sentences_*.npy")):
        numbers = np.load(path, mmap_mode="r")
        first, last = np.searchsorted(numbers, [start, stop])
        yield from np.asarray(numbers[first:last]).tolist()
