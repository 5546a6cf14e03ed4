"""Text parts -> token ids, divided into buckets: each holds a random share of the documents of one split.

One worker makes the samples of one bucket in memory. Within a bucket, random next segments are drawn from a random
share of the whole corpus. ``ids/NNNNNN.h5`` holds the documents of one text part, sorted by bucket:

    ids        (T,)     token ids of all sentences, without special tokens
    sentences  (S,)     tokens of each sentence
    documents  (D,)     sentences of each document
    numbers    (D,)     number of each document, counted over all parts
    copies     (D,)     how often it is used: dupe_factor times the weight of its corpus
    bounds     (B+1, 3) start of each bucket in ids, sentences and documents; the training buckets come first
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bert_pretrain.data.shard_directory import SPLITS
from bert_pretrain.files.file_system import new_file
from data_prep.options import PrepareConfig
from data_prep.samples.examples import LENGTH_BIN, beginning, examples_of, unknown_words
from data_prep.samples.tokenizer import load_vocabulary
from data_prep.samples.words import WordEncoder
from data_prep.text.duplicates import TextPart, repeated_documents, repeated_sentences

_BYTES_PER_BATCH = 4_000_000
_BOUND_OF = {"ids": 0, "sentences": 1, "documents": 2, "numbers": 2, "copies": 2}  # data set -> its column of bounds


@dataclass
class Encoded:
    """The documents of one part or one bucket."""

    ids: np.ndarray
    sentences: np.ndarray  # (S+1,) offsets into ids
    documents: np.ndarray  # (D+1,) offsets into sentences
    numbers: np.ndarray  # (D,)
    copies: np.ndarray  # (D,)
    corpora: np.ndarray | None = None  # (D,) number of each document's corpus; only of a bucket


def document_hash(purpose: bytes, seed: int, number: int) -> int:
    """64 random bits for a document, independent for each purpose."""
    digest = hashlib.blake2b(
        number.to_bytes(8, "little"), digest_size=8, key=seed.to_bytes(8, "little"), person=purpose
    )
    return int.from_bytes(digest.digest(), "little")


def is_heldout(document: bytes, seed: int, fraction: float) -> bool:
    """Whether a document is held out: by a hash of its text, so equal documents are in the same split."""
    digest = hashlib.blake2b(document, digest_size=8, key=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little") < fraction * 2.0**64


def document_copies(number: int, wanted: float, seed: int) -> int:
    """How often a document is used: ``wanted``, rounded up or down at random so that the mean is right."""
    return int(wanted) + (document_hash(b"copies", seed, number) < (wanted - int(wanted)) * 2.0**64)


@functools.lru_cache(maxsize=2)
def _encoder(tokenizer: Path, tokenizer_hash: str) -> WordEncoder:
    """One encoder for all tasks of a worker, since it caches words."""
    return WordEncoder(load_vocabulary(tokenizer))


def encode_part(
    part: TextPart,
    repeats: Path,
    path: Path,
    tokenizers: list[tuple[Path, str]],
    weight: float,
    config: PrepareConfig,
    buckets: tuple[int, int],
    example_share: float,
) -> dict[str, Any]:
    """Encode one text part into ``path``, without its duplicates; return the counts.

    ``tokenizers``: folder and hash; with a second one, its pieces are counted too. ``buckets``: how many there are of
    each split. ``example_share``: of the documents, those whose beginnings are kept for the report.
    """
    encoders = [_encoder(*tokenizer) for tokenizer in tokenizers]
    counts: Counter[str] = Counter()
    rows: list[tuple[int, int, int, int]] = []
    texts: list[bytes] = []
    encoded: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in encoders]
    examples: list[str] = []
    unknown: Counter[str] = Counter()

    def encode_texts() -> None:
        text = b"".join(texts)
        for encoder, batches in zip(encoders, encoded, strict=True):
            batches.append(encoder.encode(text))
        unknown.update(unknown_words(encoders[0].vocabulary, text, *encoded[0][-1]))
        texts.clear()

    size = 0
    for number, document in kept_documents(part, repeats, counts):
        heldout = is_heldout(document, config.seed, config.heldout_fraction)
        slot = document_hash(b"bucket", config.seed, number) % buckets[heldout] + heldout * buckets[0]
        copies = 1 if heldout else document_copies(number, config.dupe_factor * weight, config.seed)
        rows.append((slot, document.count(b"\n") + 1, number, copies))
        texts += document, b"\n"
        if document_hash(b"example", config.seed, number) < example_share * 2.0**64:
            examples.append(beginning(document))
        size += len(document)
        if size >= _BYTES_PER_BATCH:
            encode_texts()
            size = 0
    encode_texts()
    slots, sizes, numbers, all_copies = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    heldout_sentences = np.repeat(slots >= buckets[0], sizes)
    pieces = {}
    for encoder, batches, name in zip(
        reversed(encoders), reversed(encoded), ("before", "after")[-len(encoders) :], strict=True
    ):
        ids, lengths = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        batches.clear()
        pieces[name] = _count_pieces(encoder, ids, np.repeat(heldout_sentences, lengths))
    found, kept = _with_tokens(ids, lengths, sizes, numbers, all_copies)
    counts["sentences_dropped_without_tokens"] = int(np.count_nonzero(lengths == 0))
    counts["documents_dropped_without_tokens"] = int(np.count_nonzero(~kept))
    with new_file(path) as temporary:
        _write_sorted(temporary, found, slots[kept], sum(buckets))
    described = _describe(found, slots[kept] >= buckets[0], pieces["after"])
    return {**counts, **described, "pieces": pieces, **examples_of(part.corpus, examples, unknown)}


def _with_tokens(
    ids: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, numbers: np.ndarray, copies: np.ndarray
) -> tuple[Encoded, np.ndarray]:
    """The documents without the sentences that have no tokens, such as control characters; which (D,) have others.

    ``lengths`` (S,): tokens of each sentence; ``sizes`` (D,): sentences of each document.
    """
    has_tokens = lengths > 0
    sizes = np.diff(_offsets(has_tokens)[_offsets(sizes)])
    kept = sizes > 0
    return Encoded(ids, _offsets(lengths[has_tokens]), _offsets(sizes[kept]), numbers[kept], copies[kept]), kept


def _describe(found: Encoded, is_heldout_document: np.ndarray, pieces: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The counts of a part; ``pieces``: by split."""
    return {
        "documents": len(is_heldout_document),
        "heldout_documents": int(np.count_nonzero(is_heldout_document)),
        "documents_of_weight_0": int(np.count_nonzero(found.copies == 0)),
        "sentences": len(found.sentences) - 1,
        "tokens": len(found.ids),
        "unknown_tokens": sum(split["unknown"] for split in pieces.values()),
        "tokens_a_sentence": np.bincount(np.diff(found.sentences) // LENGTH_BIN).tolist(),
        "tokens_a_document": _by_bits(np.diff(found.sentences[found.documents])),
        "sentences_a_document": _by_bits(np.diff(found.documents)),
    }


def _by_bits(sizes: np.ndarray) -> list[int]:
    """The counts of ``sizes`` of 0, 1, 2 to 3, 4 to 7, 8 to 15, ..."""
    return list(np.bincount(np.frexp(sizes)[1]).tolist())


def _count_pieces(encoder: WordEncoder, ids: np.ndarray, is_heldout_token: np.ndarray) -> dict[str, dict[str, int]]:
    """By split, the words, the pieces and the unknown pieces of ``ids`` (T,). A word has one piece that begins it."""
    heldout, every = (np.bincount(of, minlength=len(encoder.begins_word)) for of in (ids[is_heldout_token], ids))
    return {
        split: {
            "words": int(uses[encoder.begins_word].sum()),
            "pieces": int(uses.sum()),
            "unknown": int(uses[encoder.unknown_id]),
        }
        for split, uses in zip(SPLITS, (every - heldout, heldout), strict=True)
    }


def kept_documents(part: TextPart, repeats: Path, counts: Counter[str]) -> Iterator[tuple[int, bytes]]:
    """(number, text) of the documents of a part, without duplicate documents and repeated sentences.

    The text is UTF-8 with a line feed between sentences. ``repeats`` is the folder of the duplicates found.
    """
    dropped = set(repeated_documents(repeats).tolist())
    repeated = set(repeated_sentences(repeats, part.first_sentence, part.first_sentence + part.sentences))
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


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def _write_sorted(path: Path, part: Encoded, slots: np.ndarray, buckets: int) -> None:
    """Write the documents sorted by ``slots`` (D,), the bucket of each."""
    order = np.argsort(slots, kind="stable")
    sizes = np.diff(part.documents)
    lengths = np.diff(part.sentences)
    tokens = part.sentences[part.documents]
    ids = [part.ids[tokens[document] : tokens[document + 1]] for document in order]
    lengths = np.concatenate(
        [lengths[:0], *(lengths[part.documents[document] : part.documents[document + 1]] for document in order)]
    )
    first_document = np.searchsorted(slots[order], np.arange(buckets + 1))
    first_sentence = _offsets(sizes[order])[first_document]
    first_token = _offsets(lengths)[first_sentence]
    with h5py.File(path, "w") as file:
        file["ids"] = np.concatenate([part.ids[:0], *ids])
        file["sentences"] = lengths.astype(np.int32)
        file["documents"] = sizes[order].astype(np.int32)
        file["numbers"] = part.numbers[order]
        file["copies"] = part.copies[order].astype(np.int32)
        file["bounds"] = np.stack([first_token, first_sentence, first_document], axis=1)


def read_bucket(parts: list[tuple[Path, int]], split: str, bucket: int, buckets: tuple[int, int]) -> Encoded:
    """The documents of one bucket from the files of all parts, in the order of the corpus.

    ``parts``: of each text part the file and the number of its corpus.
    """
    slot = bucket + SPLITS.index(split) * buckets[0]
    found: dict[str, list[np.ndarray]] = {name: [] for name in _BOUND_OF}
    corpora = []
    for path, corpus in parts:
        with h5py.File(path, "r") as file:
            start, stop = file["bounds"][slot : slot + 2]
            for name, column in _BOUND_OF.items():
                found[name].append(file[name][start[column] : stop[column]])
            corpora.append(np.full(len(found["numbers"][-1]), corpus))
    arrays = {name: np.concatenate(values) for name, values in found.items()}
    for name in ("sentences", "documents"):
        arrays[name] = _offsets(arrays[name].astype(np.int64))
    return Encoded(**arrays, corpora=np.concatenate(corpora))
