"""Text parts -> token ids, sorted into buckets: each bucket gets a random share of the documents of its split.

A bucket is what one worker holds in memory when it makes samples: within it, random next segments are drawn from
random documents of the whole corpus. ``ids/NNNNNN.h5`` holds, for the documents of one text part sorted by bucket:

    ids        (T,)     token ids, one sentence after the other, no special tokens
    sentences  (S,)     tokens of each sentence
    documents  (D,)     sentences of each document
    numbers    (D,)     the number of each document, counted over all parts
    copies     (D,)     how often it is used: the duplication factor times the weight of its corpus
    bounds     (B+1, 3) where each bucket starts in ids, sentences, documents; those of training first
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bert_pretrain.data.shards import SPLITS
from data_prep.options import SampleOptions
from data_prep.samples.tokenizer import load_vocabulary
from data_prep.samples.words import WordEncoder
from data_prep.text.duplicates import repeated_documents, repeated_sentences
from data_prep.text.text_parts import write_whole

_BYTES_PER_BATCH = 4_000_000
LENGTH_BIN = 8  # tokens, of the histogram of sentence lengths


@dataclass(frozen=True)
class TextPart:
    """A text part, what its first document and sentence are in the whole corpus, and where its repeats are noted."""

    path: Path
    repeats: Path
    first_document: int
    first_sentence: int
    sentences: int


@dataclass(frozen=True)
class EncodeJob:
    """One text part to encode. ``buckets`` are the numbers of buckets of each split."""

    name: str
    size: int
    text: TextPart
    folder: Path
    tokenizer: Path = field(repr=False)
    tokenizer_key: tuple[str, bool] = field(repr=False)  # its hash, and whether it lowercases
    weight: float
    options: SampleOptions
    buckets: tuple[int, int]


@dataclass
class Encoded:
    """The arrays of one part, or of one bucket. Offsets have one entry more than there are sentences, documents."""

    ids: np.ndarray
    sentences: np.ndarray  # (S+1,) offsets into ids
    documents: np.ndarray  # (D+1,) offsets into sentences
    numbers: np.ndarray
    copies: np.ndarray


def document_hash(purpose: bytes, seed: int, number: int) -> int:
    """64 random bits of a document, for one purpose."""
    digest = hashlib.blake2b(
        number.to_bytes(8, "little"), digest_size=8, key=seed.to_bytes(8, "little"), person=purpose
    )
    return int.from_bytes(digest.digest(), "little")


def is_heldout(document: bytes, seed: int, fraction: float) -> bool:
    """Whether a document is held out: a pure function of its sentences and the seed; equal documents stay together."""
    digest = hashlib.blake2b(document, digest_size=8, key=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little") < fraction * 2.0**64


def document_copies(job: EncodeJob, number: int) -> int:
    """Duplication factor times weight; of a fraction, as many documents get one copy more."""
    wanted = job.options.dupe_factor * job.weight
    return int(wanted) + (document_hash(b"copies", job.options.seed, number) < (wanted - int(wanted)) * 2.0**64)


@functools.lru_cache(maxsize=1)
def _encoder(tokenizer: Path, tokenizer_hash: str, lowercase: bool) -> WordEncoder:
    """One for all parts of a worker, so that the words it learned serve again."""
    return WordEncoder(load_vocabulary(tokenizer, lowercase))


def encode_part(job: EncodeJob) -> dict[str, Any]:
    """Write ``<name>.h5``; returns what was counted. Documents and sentences that came before are left out."""
    encoder = _encoder(job.tokenizer, *job.tokenizer_key)
    counts: Counter[str] = Counter()
    slots: list[int] = []
    sizes: list[int] = []
    numbers: list[int] = []
    copies: list[int] = []
    waiting: list[bytes] = []
    ids, lengths = [np.zeros(0, dtype=encoder.dtype)], [np.zeros(0, dtype=np.int64)]

    def flush() -> None:
        for values, more in zip((ids, lengths), encoder.encode(b"".join(waiting)), strict=True):
            values.append(more)
        waiting.clear()

    size = 0
    for number, document in kept_documents(job.text, counts):
        heldout = is_heldout(document, job.options.seed, job.options.heldout_fraction)
        bucket = document_hash(b"bucket", job.options.seed, number) % job.buckets[heldout]
        slots.append(bucket + heldout * job.buckets[0])
        sizes.append(document.count(b"\n") + 1)
        numbers.append(number)
        copies.append(1 if heldout else document_copies(job, number))
        waiting += document, b"\n"
        size += len(document)
        if size >= _BYTES_PER_BATCH:
            flush()
            size = 0
    flush()
    tokens, sizes_of_sentences = np.concatenate(ids), np.concatenate(lengths)
    kept = _without_empty(tokens, sizes_of_sentences, np.array(sizes, dtype=np.int64), counts)
    part = Encoded(*kept[:3], np.array(numbers, dtype=np.int64)[kept[3]], np.array(copies, dtype=np.int64)[kept[3]])
    slot = np.array(slots, dtype=np.int64)[kept[3]]
    counts["documents"] = len(slot)
    counts["heldout_documents"] = int(np.count_nonzero(slot >= job.buckets[0]))
    counts["documents_of_weight_0"] = int(np.count_nonzero(part.copies == 0))
    counts["sentences"] = len(part.sentences) - 1
    counts["tokens"] = len(part.ids)
    counts["unknown_tokens"] = int(np.count_nonzero(part.ids == encoder.unknown_id))
    write_whole(job.folder / f"{job.name}.h5", lambda path: _write_sorted(path, part, slot, sum(job.buckets)))
    histogram = np.bincount(np.diff(part.sentences) // LENGTH_BIN)
    return {**counts, "tokens_a_sentence": histogram.tolist()}


def kept_documents(part: TextPart, counts: Counter[str]) -> Iterator[tuple[int, bytes]]:
    """(number, sentences) of the documents of a text part, without those, and the sentences, that came before.

    The sentences in UTF-8, with a line feed between them.
    """
    dropped = set(repeated_documents(part.repeats).tolist())
    repeated = set(repeated_sentences(part.repeats, part.first_sentence, part.first_sentence + part.sentences))
    sentence = part.first_sentence
    for number, document in enumerate(part.path.read_bytes().split(b"\n\n")[:-1], start=part.first_document):
        first, sentence = sentence, sentence + document.count(b"\n") + 1
        if number in dropped:
            counts["documents_dropped_as_repeated"] += 1
            continue
        if repeated:
            sentences = document.split(b"\n")
            fresh = [text for place, text in enumerate(sentences, start=first) if place not in repeated]
            counts["sentences_dropped_as_repeated"] += len(sentences) - len(fresh)
            counts["documents_dropped_as_all_repeated"] += not fresh
            document = b"\n".join(fresh)
        if document:
            yield number, document


def _without_empty(
    ids: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, counts: Counter[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Offsets of the sentences that have tokens (others hold control characters only), and which documents have any."""
    kept = lengths > 0
    kept_of_document = np.diff(np.concatenate([[0], np.cumsum(kept)])[np.concatenate([[0], np.cumsum(sizes)])])
    filled = kept_of_document > 0
    counts["sentences_dropped_without_tokens"] = int(np.count_nonzero(~kept))
    counts["documents_dropped_without_tokens"] = int(np.count_nonzero(~filled))
    return ids, _offsets(lengths[kept]), _offsets(kept_of_document[filled]), filled


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def _write_sorted(path: Path, part: Encoded, slot: np.ndarray, slots: int) -> None:
    order = np.argsort(slot, kind="stable")
    sizes, lengths = np.diff(part.documents), np.diff(part.sentences)
    pieces = [part.ids[:0]]
    sorted_lengths = [lengths[:0]]
    for document in order:
        first, last = part.documents[document], part.documents[document + 1]
        pieces.append(part.ids[part.sentences[first] : part.sentences[last]])
        sorted_lengths.append(lengths[first:last])
    lengths = np.concatenate(sorted_lengths)
    first_document = np.searchsorted(slot[order], np.arange(slots + 1))
    first_sentence = _offsets(sizes[order])[first_document]
    first_token = _offsets(lengths)[first_sentence]
    with h5py.File(path, "w") as file:
        file["ids"] = np.concatenate(pieces)
        file["sentences"] = lengths.astype(np.int32)
        file["documents"] = sizes[order].astype(np.int32)
        file["numbers"] = part.numbers[order]
        file["copies"] = part.copies[order].astype(np.int32)
        file["bounds"] = np.stack([first_token, first_sentence, first_document], axis=1)


def read_bucket(parts: list[Path], split: str, bucket: int, buckets: tuple[int, int]) -> Encoded:
    """The documents of one bucket from all parts, in the order of the corpus."""
    slot = bucket + SPLITS.index(split) * buckets[0]
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("ids", "sentences", "documents", "numbers", "copies")}
    for path in parts:
        with h5py.File(path, "r") as file:
            (token, sentence, document), (token_end, sentence_end, document_end) = file["bounds"][slot : slot + 2]
            found["ids"].append(file["ids"][token:token_end])
            found["sentences"].append(file["sentences"][sentence:sentence_end])
            for name in ("documents", "numbers", "copies"):
                found[name].append(file[name][document:document_end])
    arrays = {name: np.concatenate(values) for name, values in found.items()}
    return Encoded(
        arrays["ids"],
        _offsets(arrays["sentences"].astype(np.int64)),
        _offsets(arrays["documents"].astype(np.int64)),
        arrays["numbers"],
        arrays["copies"],
    )
