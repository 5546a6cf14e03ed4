"""The stages of a preparation, each as tasks for the engine.

cut        large compressed files -> chunks                     corpus/cut/
text       pieces of the corpora -> clean sentences, keys       corpus/text/
repeats    keys -> duplicate documents, repeated sentences      corpus/repeats/
tokenizer  sentences -> WordPiece, or the given vocabulary      tokenizer/
ids        sentences -> token ids, in buckets                   corpus/ids/
samples    buckets -> samples for every length                  corpus/samples/
shards     samples -> shuffled -> masked shards                 corpus/scatter_L/, the shards
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bert_pretrain.data.shard_directory import SPLITS
from bert_pretrain.data.shards import ShardHeader
from data_prep.engine.local import Engine, Record, Task
from data_prep.engine.planning import needs_chunks
from data_prep.options import PrepareConfig
from data_prep.samples.examples import DOCUMENTS
from data_prep.samples.shuffle import make_samples, scatter
from data_prep.samples.tokenised import document_hash, encode_part, is_heldout, kept_documents
from data_prep.samples.write import ShardPart, write_one_shard
from data_prep.sources.cleaning import SAMPLES_PER_RULE
from data_prep.sources.pieces import Piece, Span
from data_prep.text.duplicates import (
    BANDS,
    TextPart,
    divide_keys,
    find_repeated_documents,
    find_repeated_sentences,
    merge_repeated_documents,
    numbered_parts,
    repeated_documents,
)
from data_prep.text.text_parts import split_file, write_text_part


def split_large_files(
    engine: Engine, pieces: list[Piece], folder: Path, piece_bytes: int
) -> tuple[list[Piece], Record]:
    """Replace large compressed files by the chunks they are split into; return all pieces and what was dropped."""
    large = [piece for piece in pieces if needs_chunks(piece, piece_bytes)]
    tasks = [Task(piece.name, piece.size, partial(split_file, piece, folder, piece_bytes)) for piece in large]
    records = engine.run("cut", tasks, folder, "B") if tasks else []
    chunks = {
        piece.number: [
            replace(piece, spans=(Span(folder / name),), size=size, is_chunk=True)
            for name, size in zip(record["chunks"], record["sizes"], strict=True)
        ]
        for piece, record in zip(large, records, strict=True)
    }
    smaller = [part for piece in pieces for part in chunks.get(piece.number, [piece])]
    dropped = merge_counts({key: record[key] for key in ("dropped", "dropped_samples")} for record in records)
    return [replace(piece, number=number) for number, piece in enumerate(smaller)], dropped


def write_text(
    engine: Engine, pieces: list[Piece], folder: Path, config: PrepareConfig, known: Sequence[TextPart]
) -> tuple[list[TextPart], list[Record]]:
    """Read, clean and split all pieces; return their text parts and counts.

    ``known``: the parts of the set that is appended to, behind which documents and sentences are numbered.
    """
    more = config.duplicates, config.keep_dropped
    tasks = [Task(piece.name, piece.size, partial(write_text_part, piece, folder, *more)) for piece in pieces]
    records = engine.run("text", tasks, folder, "B")
    files = [(folder / f"{piece.name}.txt", piece.corpus) for piece in pieces]
    return numbered_parts(((*file, record) for file, record in zip(files, records, strict=True)), known), records


def find_repeats(
    engine: Engine,
    parts: list[TextPart],
    config: PrepareConfig,
    folder: Path,
    known: Sequence[TextPart],
    known_repeats: Path | None,
) -> Record:
    """Find duplicate documents and, in the corpora that drop them, repeated sentences.

    ``known``, ``known_repeats``: the parts and the repeats of the set that is appended to.
    """
    every = [*known, *parts]
    keys = sum(part.documents for part in every) * (BANDS if config.duplicates.near else 1)
    find = partial(find_repeated_documents, similarity=config.duplicates.similarity)
    tasks = [
        Task(f"documents_{share.number:04d}", len(every), partial(find, share))
        for share in divide_keys(every, folder, keys, len(known))
    ]
    found = merge_counts(engine.run("duplicates", tasks, folder, " parts"))
    counts = merge_repeated_documents(folder, known_repeats)
    sentences = sum(part.sentences for part in parts if config.corpora[part.corpus].drop_repeated_sentences)
    if sentences:
        sentences += sum(part.sentences for part in known)
        tasks = [
            Task(f"sentences_{share.number:04d}", len(every), partial(find_repeated_sentences, share))
            for share in divide_keys(every, folder, sentences, len(known))
        ]
        repeated = engine.run("repeats", tasks, folder, " parts")
        counts["repeated_sentences"] = sum(record["repeated"] for record in repeated)
    return {**counts, "near_duplicate_candidates": found["near_candidates"]}


def training_text(
    parts: list[TextPart], repeats: Path, most_characters: float, seed: int, heldout_fraction: float = 0.0
) -> Iterator[str]:
    """Sentences to train the tokenizer on; of a larger corpus, a random sample of the documents.

    ``heldout_fraction``: of the documents left out, those that are held out.
    """
    share = most_characters / max(1, sum(part.characters for part in parts))
    for part in tqdm(parts, unit=" parts", desc="train", disable=None, leave=False):
        for number, document in kept_documents(part, repeats, Counter()):
            if is_heldout(document, seed, heldout_fraction):
                continue
            if share >= 1 or document_hash(b"vocab", seed, number) < share * 2.0**64:
                yield from document.decode().split("\n")


def encode(
    engine: Engine,
    parts: list[TextPart],
    corpus_dir: Path,
    tokenizers: list[tuple[Path, str]],
    config: PrepareConfig,
    buckets: tuple[int, int],
) -> list[Record]:
    """Encode all text parts. ``tokenizers``: folder and hash; a second one is compared: it is without added words."""
    folder = corpus_dir / "ids"
    dropped = int(np.count_nonzero(repeated_documents(corpus_dir / "repeats") >= parts[0].first_document))
    example_share = min(1.0, DOCUMENTS / max(1, sum(part.documents for part in parts) - dropped))
    tasks = []
    for part in parts:
        path = folder / f"{part.path.stem}.h5"
        weight = config.corpora[part.corpus].weight
        run = partial(
            encode_part, part, corpus_dir / "repeats", path, tokenizers, weight, config, buckets, example_share
        )
        tasks.append(Task(path.stem, part.characters, run))
    return engine.run("encode", tasks, folder, " characters")


def make_all_samples(
    engine: Engine,
    parts: list[TextPart],
    corpus_dir: Path,
    config: PrepareConfig,
    buckets: tuple[int, int],
    corpora: Sequence[str],
    splits: Sequence[str],
) -> dict[str, list[Record]]:
    """Make the samples of all buckets of ``splits``; return the counts of each bucket, by split.

    ``corpora``: the names of the corpora, whose places are their numbers.
    """
    numbers = {name: number for number, name in enumerate(corpora)}
    ids = [(corpus_dir / "ids" / f"{part.path.stem}.h5", numbers[part.corpus]) for part in parts]
    folder = corpus_dir / "samples"
    characters = sum(part.characters for part in parts)
    result = {}
    for split, count in zip(SPLITS, buckets, strict=True):
        tasks = [
            Task(path.stem, characters // count, partial(make_samples, path, ids, split, bucket, buckets, config))
            for bucket, path in enumerate(folder / f"{split}_{number:05d}.h5" for number in range(count))
        ]
        if tasks and split in splits:
            result[split] = engine.run(f"samples, {split}", tasks, folder, " characters")
    return result


def write_shards(
    engine: Engine,
    records: dict[str, list[Record]],
    header: ShardHeader,
    tokenizer: Path,
    corpus_dir: Path,
    out_dir: Path,
    config: PrepareConfig,
    corpora: int,
    before: Sequence[Record],
) -> list[Record]:
    """Write the shards of all splits for the sequence length of ``header``; return their rows for the manifest.

    ``corpora``: how many there are. ``before``: the rows of the shards in the set that is appended to, behind which
    shards and samples are numbered.
    """
    length, per_shard = header.sequence_length, config.samples_per_shard
    scattered = corpus_dir / f"scatter_{length}"
    counted = corpus_dir / f"shards_{length}"
    rows = []
    for split, of_buckets in records.items():
        counts = [record[str(length)]["samples"] for record in of_buckets]
        total, first = sum(counts), 0
        paths = [scattered / f"{split}_{bucket:05d}.h5" for bucket in range(len(counts))]
        tasks = []
        for path, count in zip(paths, counts, strict=True):
            source = corpus_dir / "samples" / path.name
            tasks.append(Task(path.stem, count, partial(scatter, path, source, length, first, total, config)))
            first += count
        engine.run(f"shuffle {length}, {split}", tasks, scattered, " samples")
        of_split = replace(header, split=split, dupe_factor=header.dupe_factor if split == "train" else 1)
        tasks = []
        samples = [row["samples"] for row in before if row["split"] == split]
        for number, place in enumerate(range(0, total, per_shard)):
            name = f"{split}_{len(samples) + number:05d}"
            size = min(per_shard, total - place)
            part = ShardPart(number, place, size, sum(samples) + place)
            files = out_dir / f"{name}.hdf5", counted / f"{name}.npy"
            run = partial(write_one_shard, *files, part, paths, tokenizer, of_split, corpora)
            tasks.append(Task(name, size, run))
        written = engine.run(f"write {length}, {split}", tasks, counted, " samples")
        rows += [record["row"] for record in written]
    return rows


def merge_counts(records: Iterable[Record]) -> Record:
    """Add up records: numbers, lists of numbers elementwise, and nested records; of lists of text, the first few."""
    merged: Record = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, dict):
                merged[name] = merge_counts([merged.get(name, {}), value])
            elif isinstance(value, list) and value and isinstance(value[0], str):
                merged[name] = (merged.get(name, []) + value)[: 2 * SAMPLES_PER_RULE]
            elif isinstance(value, list):
                merged[name] = [a + b for a, b in zip_longest(merged.get(name, []), value, fillvalue=0)]
            else:
                merged[name] = merged.get(name, 0) + value
    return merged
