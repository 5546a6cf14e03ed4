"""A preparation: corpora -> documents -> sentences -> tokenizer -> token ids -> samples -> shards.

The output is a pure function of the corpora and the options: the same bytes for any number of workers, and however
often the run was interrupted.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bert_pretrain.control_group import available_cores
from bert_pretrain.data.shard_directory import read_manifest, write_manifest
from bert_pretrain.data.shards import ShardHeader
from bert_pretrain.errors import ConfigError, OutageError
from bert_pretrain.files.addresses import without_secrets
from bert_pretrain.files.directory_lock import lock_directory
from bert_pretrain.output import go_on_without_reader
from data_prep.corpus import corpora_fingerprint, warn_of_losses
from data_prep.engine.append import Earlier, append_shards, check_out_dir_of_append, discard_append, open_set
from data_prep.engine.document_counts import check_documents, splits_with_documents
from data_prep.engine.local import Engine, Record, TasksLostError
from data_prep.engine.manifest import ENCODING, describe_samples, describe_sources, new_manifest, shard_header
from data_prep.engine.out_dir import (
    CORPUS,
    check_out_dir,
    claim_out_dir,
    read_record,
    release_out_dir,
    remove_intermediate,
    shard_dirs,
    stage_path,
    write_record,
)
from data_prep.engine.planning import bucket_counts, count_tasks, plan_pieces
from data_prep.engine.shard_statistics import describe_shares, piece_shares
from data_prep.engine.stages import (
    encode,
    find_repeats,
    make_all_samples,
    merge_counts,
    split_large_files,
    write_shards,
    write_text,
)
from data_prep.options import EngineConfig, PrepareConfig
from data_prep.prepared_tokenizer import make_tokenizer, warn_of_unknown
from data_prep.samples.added_words import check_word_piece, read_words
from data_prep.samples.examples import take_examples
from data_prep.samples.given_tokenizer import given_vocabulary
from data_prep.samples.tokenizer import Vocabulary, load_vocabulary
from data_prep.samples.write import unigram_entropy
from data_prep.sources.pieces import Piece
from data_prep.sources.user_rule import check_rule
from data_prep.text.clusters import describe_clusters
from data_prep.text.text_parts import write_dropped


def prepare(config: PrepareConfig, notes: list[str]) -> None:
    """Write the shards, or report that they exist already. ``notes`` about the corpus are kept in the manifest."""
    out_dir = Path(config.out_dir).absolute()
    given = given_vocabulary(config.vocab, config.lowercase, config.strip_accents) if config.vocab else None
    if given and (config.vocab_add or config.vocab_add_count):
        check_word_piece(given, str(config.vocab))
    options = _options(config, given)
    folders = shard_dirs(out_dir, config.sequence_lengths)
    if config.append:
        check_out_dir_of_append(out_dir, folders)
    elif check_out_dir(out_dir, folders, options):
        remove_intermediate(out_dir / CORPUS)
        rows = [row for folder in folders for row in (read_manifest(folder) or {})["shards"]]
        samples = sum(row["samples"] for row in rows)
        print(f"{out_dir} holds {len(rows)} finished shards with {samples:,} samples, made with these options: reused")
        return
    pieces = plan_pieces(config.corpora, config.piece_bytes)
    with lock_directory(out_dir, "out_dir"):
        if config.append:
            earlier = open_set(out_dir, folders, options)
            if earlier is None:
                print(f"{out_dir} holds the text of these corpora already: nothing was added")
                return
        else:
            check_out_dir(out_dir, folders, options)
            earlier = Earlier(out_dir / CORPUS)
        _run(Preparation(config, out_dir, options, given, notes, earlier), pieces)


def _run(preparation: "Preparation", pieces: list[Piece]) -> None:
    """Run the stages, and tidy up after them, also where they fail."""
    config = preparation.config
    out_dir = preparation.out_dir
    earlier = preparation.earlier
    is_new = claim_out_dir(earlier.corpus_dir, preparation.options)
    try:
        with _open_engine(config.engine, count_tasks(pieces, config.piece_bytes)) as engine:
            engine.check_folder(out_dir)
            go_on_without_reader()
            is_made = preparation.run(engine, pieces)
        if is_made:
            remove_intermediate(earlier.corpus_dir)
        else:
            discard_append(earlier)
    except OSError as error:  # its message from h5py has memory addresses in it
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise ConfigError(
            f"out_dir {out_dir}: writing failed ({reason}); finished parts are kept: run the command again"
        ) from None
    except (TasksLostError, OutageError):
        raise
    except ConfigError:
        if is_new:  # the options or the corpus are wrong: the next try, with others, needs an empty directory
            discard_append(earlier) if earlier.number else release_out_dir(out_dir)
        raise


def _open_engine(config: EngineConfig, most_tasks: int) -> contextlib.AbstractContextManager[Engine]:
    """The user's cluster if given; else this process for one worker or one task; else a cluster of this machine."""
    workers = max(1, min(config.workers or available_cores(), most_tasks))
    if config.scheduler is None and workers == 1:
        return contextlib.nullcontext(Engine())
    from data_prep.engine import cluster  # slow to load

    if config.scheduler is not None:
        return cluster.open_cluster(config.scheduler)
    return cluster.open_local_cluster(workers, config.worker_memory_gb, config.dashboard)


def _options(config: PrepareConfig, given: Vocabulary | None) -> dict[str, Any]:
    """Everything that the output depends on."""
    options = asdict(config)
    for name in ("out_dir", "append", "engine", "keep_dropped"):
        del options[name]
    for corpus in (options["corpus"], *options["mix"].values()):  # an address signed anew is the same one
        corpus["path"] = corpus["path"] and without_secrets(corpus["path"])
    options["fingerprint"] = corpora_fingerprint(config.corpora)
    rules = {name: check_rule(corpus.rule) for name, corpus in config.corpora.items() if corpus.rule}
    if rules:
        options["rule_hashes"] = rules
    options["tokenizer_hash"] = given.tokenizer_hash if given else None
    if given and config.vocab_add:
        words = "\n".join(read_words(Path(config.vocab_add), given))
        options["vocab_add_hash"] = hashlib.sha256(words.encode()).hexdigest()
    return options


@dataclass
class Preparation:
    """One run of all stages. Tasks and stages that an interrupted run finished are not run again."""

    config: PrepareConfig
    out_dir: Path
    options: dict[str, Any]
    """Everything that the output depends on."""
    given: Vocabulary | None
    """The tokenizer that ``vocab`` names."""
    notes: list[str]
    """What was said about the corpora already."""
    earlier: Earlier

    def __post_init__(self) -> None:
        self.corpus_dir = self.earlier.corpus_dir
        self.repeats = self.corpus_dir / "repeats"
        self.tokenizer = self.out_dir / "tokenizer"
        self.without_added_words = self.out_dir / CORPUS / "given_tokenizer"
        self.stages: list[Record] = []

    def run(self, engine: Engine, pieces: list[Piece]) -> bool:
        """From the corpus to the manifests. False if an append found no new document."""
        config = self.config
        corpus_dir = self.corpus_dir
        earlier = self.earlier
        with self._stage("text") as counts:
            pieces, dropped = split_large_files(engine, pieces, corpus_dir / "cut", config.piece_bytes)
            parts, texts = write_text(engine, pieces, corpus_dir / "text", config, earlier.parts)
            counts |= merge_counts([*texts, dropped])
            counts["notes"] = self.notes
            if lost := warn_of_losses(counts):
                counts["warnings"] = lost
            if config.keep_dropped:
                write_dropped(corpus_dir / "text", corpus_dir / "dropped")
        check_documents(config, counts)
        sources = describe_sources(config.corpora, parts, texts)
        with self._stage("repeats") as counts:
            counts |= find_repeats(engine, parts, config, self.repeats, earlier.parts, earlier.repeats)
            counts |= describe_clusters([*earlier.parts, *parts], self.repeats)
        documents, characters = (sum(getattr(part, name) for part in parts) for name in ("documents", "characters"))
        if earlier.number:  # of its documents, most may be known
            fresh = documents - counts["exact_duplicates"] - counts["near_duplicates"]
            documents, characters = fresh, characters * fresh // documents
        else:
            with self._stage("tokenizer") as counts:
                if not counts:
                    counts |= make_tokenizer(
                        config, self.given, parts, self.repeats, self.tokenizer, self.without_added_words
                    )
        vocabulary = load_vocabulary(self.tokenizer)
        tokenizers = [(self.tokenizer, vocabulary.tokenizer_hash)]
        if any(stage.get("added_words") for stage in [*earlier.stages, *self.stages]):
            before = self.without_added_words
            tokenizers.append((before, load_vocabulary(before).tokenizer_hash))
        buckets = bucket_counts(config, documents, characters)
        with self._stage(ENCODING) as counts:
            encoded = encode(engine, parts, corpus_dir, tokenizers, config, buckets)
            counts |= take_examples(encoded)
            counts |= merge_counts(encoded)
            shares = piece_shares(counts.get("pieces", {}))
            counts["warnings"] = warn_of_unknown(shares, config)
        splits = splits_with_documents(config, counts, bool(earlier.number))
        if not splits:
            print(f"{self.out_dir}: no document of these corpora is new: nothing was added", flush=True)
            return False
        print("\n".join(f"      {line}" for line in describe_shares(shares)), flush=True)
        with self._stage("samples") as counts:
            records = make_all_samples(engine, parts, corpus_dir, config, buckets, self._corpora(), splits)
            counts |= describe_samples(records)
        folders = shard_dirs(self.out_dir, config.sequence_lengths)
        manifests = []
        for folder, length, most in zip(folders, config.sequence_lengths, config.predictions, strict=True):
            header = shard_header(config, length, most, vocabulary)
            manifests.append(self._write_shards(engine, folder, header, vocabulary, records, sources))
        if earlier.number:
            append_shards(self.out_dir, folders, earlier, manifests)
            for folder, manifest in zip(folders, manifests, strict=True):
                samples = sum(row["samples"] for row in manifest["shards"])
                print(f"{folder}: {len(manifest['shards'])} shards with {samples:,} samples were appended", flush=True)
        return True

    def _corpora(self) -> list[str]:
        """The names of the corpora in the shards: those of the set, and what an append adds."""
        return list(dict.fromkeys([*self.earlier.corpora, *self.config.corpora]))

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[Record]:
        """Print, time and record a stage. Its body fills in the counts; those of an interrupted run are given to it."""
        print(f"[{len(self.stages) + 1}] {name} ...", flush=True)
        path = stage_path(self.corpus_dir, name)
        is_old = path.exists()
        counts = read_record(path) if is_old else {}
        start = time.perf_counter()
        yield counts
        if not is_old:
            counts["seconds"] = round(time.perf_counter() - start, 2)
            write_record(path, counts)
        numbers = {key: value for key, value in counts.items() if isinstance(value, int | float)}
        shown = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in numbers.items())
        print(f"      {shown}{' (from the interrupted run)' if is_old else ''}", flush=True)
        for warning in counts.get("warnings", ()):
            print(f"      warning: {warning}", flush=True)
        self.stages.append({"stage": name, **counts})

    def _write_shards(
        self,
        engine: Engine,
        folder: Path,
        header: ShardHeader,
        vocabulary: Vocabulary,
        samples: dict[str, list[Record]],
        sources: list[Record],
    ) -> dict[str, Any]:
        """The shards of one sequence length; returns their manifest, which is written unless it is an append."""
        length, corpora = header.sequence_length, self._corpora()
        target = self.earlier.folder_of(folder, length)
        before = self.earlier.shards(length)
        target.mkdir(exist_ok=True, parents=True)
        with self._stage(f"shards {length}") as counts:
            rows = write_shards(
                engine, samples, header, self.tokenizer, self.corpus_dir, target, self.config, len(corpora), before
            )
            counts |= {"sequence_length": length, "shards": len(rows), "samples": sum(row["samples"] for row in rows)}
        entropy = unigram_entropy(self.earlier.counts(length))
        manifest = new_manifest(rows, entropy, header, vocabulary, sources, corpora, self.stages, self.options)
        if self.earlier.number:
            return manifest
        if folder != self.out_dir:
            shutil.copytree(self.tokenizer, folder / "tokenizer", dirs_exist_ok=True)
        write_manifest(folder, manifest)
        print(f"{folder} holds {len(rows)} shards; unigram entropy {entropy:.3f} nats")
        print(f"train on it with data.dir={folder} model.vocab_size={len(vocabulary.tokens)}", flush=True)
        return manifest
