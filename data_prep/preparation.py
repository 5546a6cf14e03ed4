"""The stages of a preparation: corpora -> documents -> sentences -> tokenizer -> token ids -> samples -> shards.

What is written is a pure function of the corpora and the options: the same bytes for any number of workers, and
however often it was stopped on the way.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bert_pretrain.data.masking import SPECIAL_TOKENS
from bert_pretrain.data.shards import ShardHeader, read_manifest, write_manifest
from bert_pretrain.errors import ConfigError
from data_prep.corpus import corpora_fingerprint, corpus_sources, no_text
from data_prep.engine.local import Engine, PartsLostError
from data_prep.engine.out_dir import (
    CORPUS,
    check_out_dir,
    claim_out_dir,
    load_stage,
    release_out_dir,
    remove_intermediate,
    save_stage,
    shard_dirs,
)
from data_prep.engine.planning import count_parts, plan_pieces
from data_prep.engine.stages import (
    Record,
    Text,
    cut_large_files,
    encode,
    find_repeats,
    make_all_samples,
    merge_counts,
    training_text,
    write_shards,
    write_text,
)
from data_prep.options import CorpusConfig, EngineConfig, PrepareConfig, SampleOptions, bucket_counts, sample_options
from data_prep.samples.tokenizer import Vocabulary, load_vocabulary, train_vocabulary, write_tokenizer
from data_prep.samples.write import unigram_entropy
from data_prep.sources.pieces import Piece


def prepare(config: PrepareConfig) -> None:
    """Write the shards, or say that they are there already."""
    out_dir = Path(config.out_dir).absolute()
    given = load_vocabulary(Path(config.vocab), config.lowercase) if config.vocab else None
    options = _options(config, given)
    folders = shard_dirs(out_dir, config.sequence_lengths)
    if check_out_dir(out_dir, folders, options):
        remove_intermediate(out_dir)
        rows = [row for folder in folders for row in (read_manifest(folder) or {})["shards"]]
        samples = sum(row["samples"] for row in rows)
        print(f"{out_dir} holds {len(rows)} finished shards with {samples:,} samples, made with these options: reused")
        return
    pieces = plan_pieces(config.corpora, config.piece_bytes)
    is_new = claim_out_dir(out_dir, options)
    try:
        most_parts = count_parts(pieces, config.piece_bytes)
        with _open_engine(config.engine, most_parts) as engine:
            engine.check_folder(out_dir)
            Preparation(config, out_dir, options, engine).run(pieces, given)
        remove_intermediate(out_dir)
    except OSError as error:  # h5py's text has addresses in it
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise ConfigError(
            f"out_dir {out_dir}: writing failed ({reason}); what was finished is kept: run again"
        ) from None
    except PartsLostError:
        raise
    except ConfigError:
        if is_new:  # the options or the corpus are at fault: leave nothing that would bind the next try to them
            release_out_dir(out_dir)
        raise


def _open_engine(config: EngineConfig, most_parts: int) -> AbstractContextManager[Engine]:
    """This process where one worker is asked for or there is one part only; else the user's cluster, or one of this
    machine's cores."""
    workers = max(1, min(config.workers or len(os.sched_getaffinity(0)), most_parts))
    if config.scheduler is None and workers == 1:
        return nullcontext(Engine())
    from data_prep.engine import cluster  # loading dask takes longer than preparing a small corpus

    if config.scheduler is not None:
        return cluster.open_cluster(config.scheduler)
    return cluster.open_local_cluster(workers, config.worker_memory_gb, config.dashboard)


def _options(config: PrepareConfig, given: Vocabulary | None) -> dict[str, Any]:
    """What the result depends on, and nothing else."""
    options = asdict(config)
    for name in ("out_dir", "engine"):
        del options[name]
    options["fingerprint"] = corpora_fingerprint(config.corpora)
    options["tokenizer_hash"] = given.tokenizer_hash if given else None
    return options


class Preparation:
    """One run over all stages; those that an interrupted run finished are taken from it."""

    def __init__(self, config: PrepareConfig, out_dir: Path, options: dict[str, Any], engine: Engine) -> None:
        self.config, self.out_dir, self.options, self.engine = config, out_dir, options, engine
        self.corpus_dir = out_dir / CORPUS
        self.tokenizer = out_dir / "tokenizer"
        self.samples = sample_options(config)
        self.stages: list[Record] = []

    def run(self, pieces: list[Piece], given: Vocabulary | None) -> None:
        """Corpus to manifests."""
        text = self._text(pieces)
        self._stage("repeats", lambda: self._repeats(text))
        self._stage("tokenizer", lambda: self._tokenizer(text, given))
        vocabulary = given or load_vocabulary(self.tokenizer, self.config.lowercase)
        documents = sum(record["documents"] for record in text.records)
        buckets = bucket_counts(self.config, documents, text.characters)
        self._stage("token ids", lambda: self._token_ids(text, vocabulary, buckets))
        records: dict[str, list[Record]] = {}

        def samples() -> Record:
            ids = [self.corpus_dir / "ids" / f"{part.path.stem}.h5" for part in text.parts]
            folder = self.corpus_dir / "samples"
            records.update(make_all_samples(self.engine, ids, text.characters, self.samples, buckets, folder))
            return _describe_samples(records)

        self._stage("samples", samples, always=True)
        for folder, length, most in zip(
            shard_dirs(self.out_dir, self.config.sequence_lengths),
            self.samples.sequence_lengths,
            self.samples.max_predictions,
            strict=True,
        ):
            self._shards(folder, length, most, vocabulary, records, text)

    def _stage(self, name: str, run: Callable[[], Record], always: bool = False) -> Record:
        """Run a stage, print what it counted, and note it; ``always`` also when it is done, for what it returns."""
        print(f"[{len(self.stages) + 1}] {name} ...", flush=True)
        before = load_stage(self.corpus_dir, name)
        counts = before
        start = time.perf_counter()
        if counts is None or always:
            counts = run()
            seconds = before["seconds"] if before else round(time.perf_counter() - start, 2)
            counts["seconds"] = seconds
            save_stage(self.corpus_dir, name, counts)
        shown = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in counts.items() if _is_number(value))
        print(f"      {shown}{' (from the interrupted run)' if before else ''}", flush=True)
        self.stages.append({"stage": name, **counts})
        return counts

    def _text(self, pieces: list[Piece]) -> Text:
        found: list[Text] = []

        def run() -> Record:
            cut, dropped = cut_large_files(self.engine, pieces, self.corpus_dir / "cut", self.config.piece_bytes)
            found.append(write_text(self.engine, cut, self.corpus_dir, self.config.duplicates))
            return merge_counts([*found[0].records, dropped])

        counts = self._stage("text", run, always=True)
        if counts["documents"] == 0:
            raise ConfigError(no_text(self.config.corpus, counts["dropped"]))
        if counts["documents"] == 1:
            raise ConfigError(
                "the corpus is one document only, so no segment from another document can be drawn; give more files, "
                "or let corpus.documents (file, blank_line) divide it"
            )
        return found[0]

    def _repeats(self, text: Text) -> Record:
        folder = self.corpus_dir / "repeats"
        return find_repeats(self.engine, text, self.config.duplicates, self.config.corpora, folder)

    def _tokenizer(self, text: Text, given: Vocabulary | None) -> Record:
        config = self.config
        most = config.vocab_text_mb * 1e6
        vocabulary = given or train_vocabulary(
            lambda: training_text(text, most, config.seed), config.vocab_size, config.lowercase
        )
        write_tokenizer(vocabulary, self.tokenizer)
        return {"vocabulary": len(vocabulary.tokens)}

    def _token_ids(self, text: Text, vocabulary: Vocabulary, buckets: tuple[int, int]) -> Record:
        folder, corpora = self.corpus_dir / "ids", self.config.corpora
        records = encode(self.engine, text, vocabulary, self.tokenizer, self.samples, corpora, buckets, folder)
        counts = merge_counts(records)
        _check_splits(self.config, counts)
        return counts

    def _shards(
        self,
        folder: Path,
        length: int,
        most: int,
        vocabulary: Vocabulary,
        records: dict[str, list[Record]],
        text: Text,
    ) -> None:
        folder.mkdir(exist_ok=True)
        header = _header(self.samples, length, most, vocabulary)
        rows: list[Record] = []

        def shards() -> Record:
            tokenizer = (self.tokenizer, vocabulary.lowercase)
            size = self.samples.samples_per_shard
            rows.extend(write_shards(self.engine, records, header, size, tokenizer, self.corpus_dir, folder))
            return {"sequence_length": length, "shards": len(rows), "samples": sum(row["samples"] for row in rows)}

        self._stage(f"shards {length}", shards, always=True)
        counts = sorted((self.corpus_dir / f"shards_{length}").glob("train_*.npy"))
        entropy = unigram_entropy(counts)
        if folder != self.out_dir:
            write_tokenizer(vocabulary, folder / "tokenizer")
        manifest = {
            "shards": rows,
            "sequence_length": length,
            "max_predictions": most,
            "unigram_entropy": entropy,
            "tokenizer": _describe_tokenizer(vocabulary),
            "sources": _describe_sources(self.config.corpora, text),
            "stages": self.stages,
            "options": self.options,
        }
        write_manifest(folder, manifest)
        print(f"{folder} holds {len(rows)} shards; unigram entropy {entropy:.3f} nats")
        print(f"train on it with data.dir={folder} model.vocab_size={len(vocabulary.tokens)}", flush=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _check_splits(config: PrepareConfig, counts: Record) -> None:
    held = counts["heldout_documents"]
    training = counts["documents"] - held
    if training < 2 or (config.heldout_fraction > 0 and held < 2):
        raise ConfigError(
            f"heldout_fraction is {config.heldout_fraction}, which leaves {training} documents for training and {held} "
            f"held out of {counts['documents']}; both need two or more, because a random next segment comes from "
            "another document: give more documents, another heldout_fraction (0: no held-out shards) or another seed"
        )


def _describe_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "vocab_size": len(vocabulary.tokens),
        "vocab_hash": vocabulary.vocab_hash,
        "tokenizer_hash": vocabulary.tokenizer_hash,
        "lowercase": vocabulary.lowercase,
        "special_ids": {token: vocabulary.tokens.index(token) for token in SPECIAL_TOKENS},
    }


def _header(options: SampleOptions, length: int, most: int, vocabulary: Vocabulary) -> ShardHeader:
    return ShardHeader(
        sequence_length=length,
        max_predictions=most,
        vocab_size=len(vocabulary.tokens),
        vocab_hash=vocabulary.vocab_hash,
        tokenizer_hash=vocabulary.tokenizer_hash,
        masked_lm_prob=options.masked_lm_prob,
        whole_word_masking=options.whole_word_masking,
        short_seq_prob=options.short_seq_prob,
        dupe_factor=options.dupe_factor,
        seed=options.seed,
        split="train",
    )


def _describe_samples(records: dict[str, list[Record]]) -> Record:
    """By length and split, what was counted over all buckets."""
    merged = {split: merge_counts(of_split) for split, of_split in records.items()}
    lengths = next(iter(merged.values()))
    return {length: {split: merged[split][length] for split in merged} for length in lengths}


def _describe_sources(corpora: dict[str, CorpusConfig], text: Text) -> list[Record]:
    rows = []
    for name, corpus in corpora.items():
        mine = [record for owner, record in zip(text.corpora, text.records, strict=True) if owner == name]
        counts = merge_counts(record["by_source"] for record in mine)
        sources = corpus_sources(name, corpus)
        rows += [{**asdict(sources[key]), **counts[key]} for key in counts]
    return rows
