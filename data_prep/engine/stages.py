"""The stages of a preparation, each as jobs for the engine: what they read, what they write, what they count.

cut        large packed files -> chunks                         corpus/cut/
text       pieces of the corpora -> clean sentences, keys       corpus/text/
repeats    keys -> what came before                             corpus/repeats/
tokenizer  sentences -> WordPiece, or the one that was given    tokenizer/
ids        sentences -> token ids, in buckets                   corpus/ids/
samples    buckets -> samples for every length                  corpus/samples/
shards     samples -> their places -> masked shards             corpus/scatter_L/, shards
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bert_pretrain.data.shards import ShardHeader
from data_prep.engine.local import Engine
from data_prep.engine.planning import must_be_cut
from data_prep.options import CorpusConfig, DuplicateConfig, SampleOptions
from data_prep.samples.shuffle import SampleJob, ScatterJob, make_samples, scatter
from data_prep.samples.tokenised import EncodeJob, TextPart, document_hash, encode_part, kept_documents
from data_prep.samples.tokenizer import Vocabulary
from data_prep.samples.write import ShardJob, write_one_shard
from data_prep.sources.cleaning import SAMPLES_PER_RULE
from data_prep.sources.pieces import Piece
from data_prep.text.duplicates import (
    BANDS,
    PartKeys,
    find_repeated_documents,
    find_repeated_sentences,
    merge_repeated_documents,
    plan_repeats,
)
from data_prep.text.text_parts import CutJob, TextJob, chunk_pieces, cut_file, write_text_part

Record = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """The finished text stage: parts in order, and the corpus of each."""

    parts: list[TextPart]
    corpora: list[str]
    records: list[Record] = field(repr=False)

    @property
    def characters(self) -> int:
        """In all sentences."""
        return sum(record["characters"] for record in self.records)


def cut_large_files(engine: Engine, pieces: list[Piece], folder: Path, piece_bytes: int) -> tuple[list[Piece], Record]:
    """Replace large packed files by the chunks that they are cut into."""
    jobs = [CutJob(piece, folder, piece_bytes) for piece in pieces if must_be_cut(piece, piece_bytes)]
    records = engine.run("cut", cut_file, jobs, folder, "B") if jobs else []
    chunks = {job.piece.number: chunk_pieces(job, record) for job, record in zip(jobs, records, strict=True)}
    whole = [part for piece in pieces for part in chunks.get(piece.number, [piece])]
    return [replace(piece, number=number) for number, piece in enumerate(whole)], merge_counts(
        {key: record[key] for key in ("dropped", "dropped_samples")} for record in records
    )


def write_text(engine: Engine, pieces: list[Piece], corpus_dir: Path, duplicates: DuplicateConfig) -> Text:
    """Read, clean and split all pieces."""
    folder = corpus_dir / "text"
    jobs = [TextJob(piece, folder, duplicates) for piece in pieces]
    records = engine.run("text", write_text_part, jobs, folder, "B")
    parts, document, sentence = [], 0, 0
    for job, record in zip(jobs, records, strict=True):
        path = folder / f"{job.name}.txt"
        parts.append(TextPart(path, corpus_dir / "repeats", document, sentence, record["sentences"]))
        document += record["documents"]
        sentence += record["sentences"]
    return Text(parts, [piece.corpus for piece in pieces], records)


def find_repeats(
    engine: Engine, text: Text, config: DuplicateConfig, corpora: Mapping[str, CorpusConfig], folder: Path
) -> Record:
    """Find the documents, and in corpora that ask for it the sentences, that came before."""
    keys = [
        PartKeys(part.path.with_suffix(".keys.npz"), part.first_document, part.first_sentence, record["documents"])
        for part, record in zip(text.parts, text.records, strict=True)
    ]
    count = sum(record["documents"] for record in text.records) * (BANDS if config.near else 1)
    jobs = plan_repeats(keys, folder, config, "documents", count)
    found = merge_counts(engine.run("duplicates", find_repeated_documents, jobs, folder, " parts"))
    counts = merge_repeated_documents(folder, jobs)
    sentences = sum(
        record["sentences"]
        for name, record in zip(text.corpora, text.records, strict=True)
        if corpora[name].drop_repeated_sentences
    )
    if sentences:
        jobs = plan_repeats(keys, folder, config, "sentences", sentences)
        repeated = engine.run("repeats", find_repeated_sentences, jobs, folder, " parts")
        counts["repeated_sentences"] = sum(record["repeated"] for record in repeated)
    return {**counts, "near_duplicate_candidates": found["near_candidates"]}


def training_text(text: Text, most_characters: float, seed: int) -> Iterator[str]:
    """Sentences for the tokenizer's training: of a larger corpus, a random share of the documents."""
    share = most_characters / max(1, text.characters)
    with tqdm(total=len(text.parts), unit=" parts", desc="train", disable=None, leave=False) as progress:
        for part in text.parts:
            for number, document in kept_documents(part, Counter()):
                if share >= 1 or document_hash(b"vocab", seed, number) < share * 2.0**64:
                    yield from document.decode().split("\n")
            progress.update()


def encode(
    engine: Engine,
    text: Text,
    vocabulary: Vocabulary,
    tokenizer: Path,
    options: SampleOptions,
    corpora: Mapping[str, CorpusConfig],
    buckets: tuple[int, int],
    folder: Path,
) -> list[Record]:
    """Token ids of all parts."""
    key = (vocabulary.tokenizer_hash, vocabulary.lowercase)
    jobs = [
        EncodeJob(
            part.path.stem, record["characters"], part, folder, tokenizer, key, corpora[name].weight, options, buckets
        )
        for part, name, record in zip(text.parts, text.corpora, text.records, strict=True)
    ]
    return engine.run("encode", encode_part, jobs, folder, " characters")


def make_all_samples(
    engine: Engine, ids: list[Path], size: int, options: SampleOptions, buckets: tuple[int, int], folder: Path
) -> dict[str, list[Record]]:
    """The samples of all buckets, for all lengths; the records of each split that has buckets."""
    result = {}
    for split, count in zip(("train", "heldout"), buckets, strict=True):
        jobs = [
            SampleJob(split, bucket, buckets, size // max(1, count), tuple(ids), folder, options)
            for bucket in range(count)
        ]
        if jobs:
            result[split] = engine.run(f"samples, {split}", make_samples, jobs, folder, " characters")
    return result


def write_shards(
    engine: Engine,
    records: dict[str, list[Record]],
    header: ShardHeader,
    samples_per_shard: int,
    tokenizer: tuple[Path, bool],
    corpus_dir: Path,
    out_dir: Path,
) -> list[Record]:
    """The shards of all splits for the sequence length of ``header``; their rows for the manifest."""
    length = header.sequence_length
    scattered, counted = corpus_dir / f"scatter_{length}", corpus_dir / f"shards_{length}"
    rows = []
    for split, of_buckets in records.items():
        counts = [record[str(length)]["samples"] for record in of_buckets]
        total, first = sum(counts), 0
        jobs = []
        for bucket, count in enumerate(counts):
            source = corpus_dir / "samples" / f"{split}_{bucket:05d}.h5"
            jobs.append(
                ScatterJob(
                    split, bucket, count, source, scattered, length, first, total, samples_per_shard, header.seed
                )
            )
            first += count
        engine.run(f"shuffle {length}, {split}", scatter, jobs, scattered, " samples")
        of_split = replace(header, split=split, dupe_factor=header.dupe_factor if split == "train" else 1)
        shards = [
            ShardJob(
                number=number,
                size=min(samples_per_shard, total - place),
                first_place=place,
                sources=tuple(scattered / f"{job.name}.h5" for job in jobs),
                tokenizer=tokenizer[0],
                lowercase=tokenizer[1],
                out_dir=out_dir,
                counts=counted,
                header=of_split,
            )
            for number, place in enumerate(range(0, total, samples_per_shard))
        ]
        written = engine.run(f"write {length}, {split}", write_one_shard, shards, counted, " samples")
        rows += [record["row"] for record in written]
    return rows


def merge_counts(records: Iterable[Record]) -> Record:
    """Sums of numbers, of lists number by number, of the same within; of samples, the first few."""
    merged: Record = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, dict):
                merged[name] = merge_counts([merged.get(name, {}), value])
            elif isinstance(value, list) and value and isinstance(value[0], str):
                merged[name] = (merged.get(name, []) + value)[: 2 * SAMPLES_PER_RULE]
            elif isinstance(value, list):
                before = merged.get(name, [])
                longest = max(len(before), len(value))
                padded = [part + [0] * (longest - len(part)) for part in (before, value)]
                merged[name] = [a + b for a, b in zip(*padded, strict=True)]
            else:
                merged[name] = merged.get(name, 0) + value
    return merged
