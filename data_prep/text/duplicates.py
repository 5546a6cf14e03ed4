"""Documents, and on request sentences, that came before: found over all parts, in bounded memory.

Exact: equal text but for case and white space, by a 64-bit hash. Near: the Jaccard similarity of the sets of word
5-grams, estimated by MinHash (Broder 1997; the library is ``rensa``), 20 bands of 6 rows: of two documents of
similarity 0.8 the bands meet with a probability of 0.998. Documents that meet in a band are compared by all 120
hashes. Of equal ones the first of the corpus stays.

Keys are shared out to jobs by their value, so that a job holds about ``_KEYS_PER_JOB`` of them, however many there are.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rensa import RMinHash

from data_prep.options import DuplicateConfig

BANDS, ROWS = 20, 6
_SHINGLE = 5  # words
_KEYS_PER_JOB = 8_000_000
_PAIRS_AT_ONCE = 200_000
_SEED = 42


@dataclass(frozen=True)
class PartKeys:
    """Where the keys of a text part are; its first document and first sentence, counted over all parts."""

    path: Path
    first_document: int
    first_sentence: int
    documents: int


@dataclass(frozen=True)
class RepeatJob:
    """The keys that leave ``number`` when divided by ``jobs``, of all parts."""

    number: int
    jobs: int
    parts: tuple[PartKeys, ...] = field(repr=False)
    folder: Path
    similarity: float
    kind: str  # "documents" or "sentences"

    @property
    def name(self) -> str:
        """Of the file of results too."""
        return f"{self.kind}_{self.number:04d}"

    @property
    def size(self) -> int:
        """Parts to read."""
        return len(self.parts)


def text_key(text: str) -> int:
    """64 bits of a text, whatever its case."""
    return int.from_bytes(hashlib.blake2b(text.casefold().encode(), digest_size=8).digest(), "little")


def part_keys(documents: Sequence[list[str]], config: DuplicateConfig, sentences_too: bool) -> dict[str, np.ndarray]:
    """The keys of one part of D documents with S sentences.

    documents (D,) uint64; bands (D, 20) uint64 and signatures (D, 120) uint32 where near duplicates are looked for;
    sizes (D,) the sentences of each; sentences (S,) uint64 where repeated sentences are dropped, else (0,).
    """
    keys: dict[str, np.ndarray] = {"sizes": np.array([len(document) for document in documents], dtype=np.int64)}
    exact = [text_key(" ".join(document)) for document in documents] if config.exact else []
    keys["documents"] = np.array(exact, dtype=np.uint64)
    signatures = [signature(document) for document in documents] if config.near else []
    keys["signatures"] = np.array(signatures, dtype=np.uint32).reshape(len(signatures), BANDS * ROWS)
    keys["bands"] = band_keys(keys["signatures"])
    repeated = [text_key(text) for document in documents for text in document] if sentences_too else []
    keys["sentences"] = np.array(repeated, dtype=np.uint64)
    return keys


def signature(sentences: list[str]) -> list[int]:
    """The MinHash of a document's word 5-grams; of all its words where there are fewer."""
    words = " ".join(sentences).casefold().split()
    shingles = [" ".join(words[start : start + _SHINGLE]) for start in range(max(1, len(words) - _SHINGLE + 1))]
    minhash = RMinHash(num_perm=BANDS * ROWS, seed=_SEED)
    minhash.update(shingles)
    values: list[int] = minhash.digest()
    return values


def band_keys(signatures: np.ndarray) -> np.ndarray:
    """(D, 20) uint64: one hash of the six values of each band, and of its number."""
    values = signatures.reshape(len(signatures), BANDS, ROWS).astype(np.uint64)
    keys = np.broadcast_to(np.arange(1, BANDS + 1, dtype=np.uint64), (len(signatures), BANDS)).copy()
    for row in range(ROWS):
        keys = (keys ^ values[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def plan_repeats(
    parts: Sequence[PartKeys], folder: Path, config: DuplicateConfig, kind: str, keys: int
) -> list[RepeatJob]:
    """The jobs that share out ``keys`` keys of all parts."""
    jobs = max(1, -(-keys // _KEYS_PER_JOB))
    return [RepeatJob(number, jobs, tuple(parts), folder, config.similarity, kind) for number in range(jobs)]


def find_repeated_documents(job: RepeatJob) -> dict[str, Any]:
    """Write ``documents_NNNN.npz``: repeated (n,), the first of its like (n,), and whether they are equal (n,)."""
    later, first = repeats(*_gather(job, "documents"))
    near_later, near_first = repeats(*_gather(job, "bands"))
    pairs = np.unique(np.stack([near_later, near_first], axis=1), axis=0)
    near_similarity = np.concatenate(
        [
            _similarity(job.parts, pairs[start : start + _PAIRS_AT_ONCE])
            for start in range(0, max(1, len(pairs)), _PAIRS_AT_ONCE)
        ]
    )
    alike = near_similarity >= job.similarity
    with open(job.folder / f"{job.name}.npz", "wb") as file:
        np.savez(
            file,
            repeated=np.concatenate([later, pairs[alike, 0]]),
            original=np.concatenate([first, pairs[alike, 1]]),
            is_exact=np.arange(len(later) + int(alike.sum())) < len(later),
        )
    return {"exact_pairs": len(later), "near_candidates": len(pairs), "near_pairs": int(alike.sum())}


def find_repeated_sentences(job: RepeatJob) -> dict[str, Any]:
    """Write ``sentences_NNNN.npy``: the numbers of the sentences that came before, ascending."""
    later, _ = repeats(*_gather(job, "sentences"))
    np.save(job.folder / f"{job.name}.npy", np.sort(later))
    return {"repeated": len(later)}


def repeats(keys: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of keys (n,) with ascending owners (n,): the owners of keys that came before, and the first owner of each."""
    order = np.argsort(keys, kind="stable")
    fresh = np.ones(len(keys), dtype=np.bool_)
    fresh[1:] = keys[order[1:]] != keys[order[:-1]]
    first = owners[order[np.flatnonzero(fresh)[np.cumsum(fresh) - 1]]] if len(keys) else owners
    later = owners[order]
    again = later != first
    return later[again], first[again]


def _gather(job: RepeatJob, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The job's keys of all parts, and whose each is."""
    keys, owners = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    dropped = repeated_documents(job.folder) if name == "sentences" else None
    for part in job.parts:
        with np.load(part.path) as arrays:
            found = arrays[name]
            sizes = arrays["sizes"]
        if name == "bands":
            owner = np.repeat(part.first_document + np.arange(len(found)), BANDS)
        else:
            first = part.first_sentence if name == "sentences" else part.first_document
            owner = first + np.arange(len(found))
        found = found.reshape(-1)
        mine = found % np.uint64(job.jobs) == job.number
        if dropped is not None and len(found):
            mine &= ~np.repeat(np.isin(part.first_document + np.arange(len(sizes)), dropped), sizes)
        keys.append(found[mine])
        owners.append(owner[mine])
    return np.concatenate(keys), np.concatenate(owners)


def _similarity(parts: Sequence[PartKeys], pairs: np.ndarray) -> np.ndarray:
    """The share of equal hashes of each pair (n, 2) of documents."""
    wanted = np.unique(pairs)
    rows = np.zeros((len(wanted), BANDS * ROWS), dtype=np.uint32)
    for part in parts:
        start, stop = np.searchsorted(wanted, [part.first_document, part.first_document + part.documents])
        if stop > start:
            with np.load(part.path) as arrays:
                rows[start:stop] = arrays["signatures"][wanted[start:stop] - part.first_document]
    places = np.searchsorted(wanted, pairs)
    return (rows[places[:, 0]] == rows[places[:, 1]]).mean(axis=1) if len(pairs) else np.zeros(0)


def merge_repeated_documents(folder: Path, jobs: Sequence[RepeatJob]) -> dict[str, int]:
    """Write ``repeated.npy``, the numbers of all documents to drop, ascending; returns how many, exact and near."""
    found: list[np.ndarray] = []
    exact: list[np.ndarray] = []
    for job in jobs:
        with np.load(folder / f"{job.name}.npz") as arrays:
            found.append(arrays["repeated"])
            exact.append(arrays["repeated"][arrays["is_exact"]])
    dropped, same = np.unique(np.concatenate(found)), np.unique(np.concatenate(exact))
    np.save(folder / "repeated.npy", dropped)
    return {"exact_duplicates": len(same), "near_duplicates": len(dropped) - len(same)}


def repeated_documents(folder: Path) -> np.ndarray:
    """The numbers of the documents to drop, ascending, counted over all parts."""
    return np.asarray(np.load(folder / "repeated.npy"))


def repeated_sentences(folder: Path, start: int, stop: int) -> Iterator[int]:
    """The numbers of the sentences to drop, from ``start`` up to ``stop``."""
    for path in sorted(folder.glob("sentences_*.npy")):
        numbers = np.load(path, mmap_mode="r")
        first, last = np.searchsorted(numbers, [start, stop])
        yield from np.asarray(numbers[first:last]).tolist()
