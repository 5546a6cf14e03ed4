"""Entry point: corpus -> documents -> sentences -> tokenizer -> token ids -> samples -> masked shards.

    python -m data_prep.prepare corpus=embedded out_dir=data/demo sequence_length=64 vocab_size=8192

The options and their meaning stand in ``configs/prepare.yaml``. Everything that is written is a pure function of
the corpus and the options: the same bytes on any number of cores.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.masking import SPECIAL_TOKENS
from bert_pretrain.shards import read_manifest, write_manifest
from bert_pretrain.structured import entry_point
from data_prep.documents import CorpusConfig, corpus_fingerprint, corpus_sources, read_documents
from data_prep.out_dir import check_out_dir, claim_out_dir, load_stage, release_out_dir, save_stage
from data_prep.sentences import read_sentences, write_sentences
from data_prep.tokenised import open_tokenised, tokenise
from data_prep.tokenizer import SMALLEST_VOCAB, Vocabulary, load_vocabulary, train_vocabulary, write_tokenizer
from data_prep.write import SampleConfig, write_splits

SHORTEST_SEQUENCE = 16


@dataclass
class PrepareConfig:
    """The options of ``configs/prepare.yaml``, where each is explained."""

    out_dir: str
    corpus: CorpusConfig
    vocab: str | None
    vocab_size: int
    lowercase: bool
    sequence_length: int
    max_predictions: int | None
    masked_lm_prob: float
    short_seq_prob: float
    dupe_factor: int
    whole_word_masking: bool
    samples_per_shard: int
    heldout_fraction: float
    seed: int
    workers: int | None

    def __post_init__(self) -> None:
        length, most = self.sequence_length, self.max_predictions
        if self.vocab is None:
            require(self.vocab_size >= SMALLEST_VOCAB, "vocab_size", self.vocab_size, f"{SMALLEST_VOCAB} or more")
        require(SHORTEST_SEQUENCE <= length < 1 << 16, "sequence_length", length, f"{SHORTEST_SEQUENCE} to 65535")
        require(most is None or 1 <= most <= length, "max_predictions", most, "null, or 1 to sequence_length")
        require(0 < self.masked_lm_prob < 1, "masked_lm_prob", self.masked_lm_prob, "above 0 and below 1")
        require(0 <= self.short_seq_prob <= 1, "short_seq_prob", self.short_seq_prob, "0 to 1")
        require(self.dupe_factor >= 1, "dupe_factor", self.dupe_factor, "1 or more")
        require(self.samples_per_shard >= 1, "samples_per_shard", self.samples_per_shard, "1 or more")
        require(0 <= self.heldout_fraction < 1, "heldout_fraction", self.heldout_fraction, "0 or more and below 1")
        require(0 <= self.seed < 1 << 62, "seed", self.seed, "0 or more and below 2^62")
        require(self.workers is None or self.workers >= 1, "workers", self.workers, "null, or 1 or more")


@entry_point("prepare", PrepareConfig)
def main(config: PrepareConfig) -> None:
    """Write the shards, or say that they are there already."""
    out_dir = Path(config.out_dir)
    given = load_vocabulary(Path(config.vocab), config.lowercase) if config.vocab else None
    options = _options(config, given)
    check_out_dir(out_dir, options)
    finished = read_manifest(out_dir) if out_dir.is_dir() else None
    if finished is not None:
        rows = finished["shards"]
        samples = sum(row["samples"] for row in rows)
        print(f"{out_dir} holds {len(rows)} finished shards with {samples:,} samples, made with these options: reused")
        return
    is_new = claim_out_dir(out_dir, options)
    try:
        prepare(config, out_dir, options, given)
    except OSError as error:
        raise ConfigError(
            f"out_dir {out_dir}: writing failed ({error}); the stages that were finished are kept: run again"
        ) from None
    except ConfigError:
        if is_new:  # the options or the corpus are at fault: leave nothing that would bind the next try to them
            release_out_dir(out_dir)
        raise


def _options(config: PrepareConfig, given: Vocabulary | None) -> dict[str, Any]:
    """What the result depends on, and nothing else."""
    options = asdict(config)
    for name in ("out_dir", "workers"):
        del options[name]
    options["corpus"]["fingerprint"] = corpus_fingerprint(config.corpus)
    options["tokenizer_hash"] = given.tokenizer_hash if given else None
    return options


def prepare(config: PrepareConfig, out_dir: Path, options: dict[str, Any], given: Vocabulary | None) -> None:
    """All stages, one after the other; those that an interrupted run finished are taken from it."""
    corpus_dir = out_dir / "corpus"
    text = corpus_dir / "sentences.txt"
    stages: list[dict[str, Any]] = []

    def stage(name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        print(f"[{len(stages) + 1}/4] {name} ...", flush=True)
        counts, reused = load_stage(corpus_dir, name), True
        start = time.perf_counter()
        if counts is None:
            counts, reused = run(), False
            counts["seconds"] = round(time.perf_counter() - start, 2)
            if name != "shards":
                save_stage(corpus_dir, name, counts)
        shown = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in counts.items() if _is_number(value))
        print(f"      {shown}{' (from the interrupted run)' if reused else ''}", flush=True)
        stages.append({"stage": name, **counts})
        return counts

    corpus_counts = stage("sentences", lambda: _sentences(config, text))
    stage("tokenizer", lambda: _tokenizer(config, text, out_dir / "tokenizer", given))
    vocabulary = load_vocabulary(out_dir / "tokenizer", config.lowercase)
    stage("token ids", lambda: _token_ids(config, text, corpus_counts["documents"], vocabulary, corpus_dir))
    corpus = open_tokenised(corpus_dir)
    samples = _sample_config(config)
    result: dict[str, Any] = {}

    def shards() -> dict[str, Any]:
        result.update(write_splits(corpus, vocabulary, samples, out_dir))
        return dict(result["counts"])

    stage("shards", shards)
    write_manifest(
        out_dir,
        {
            "shards": result["rows"],
            "sequence_length": samples.sequence_length,
            "max_predictions": samples.max_predictions,
            "unigram_entropy": result["unigram_entropy"],
            "tokenizer": _describe_tokenizer(vocabulary),
            "sources": _describe_sources(config.corpus, corpus_counts["by_source"]),
            "stages": stages,
            "options": options,
        },
    )
    print(f"{out_dir} holds {len(result['rows'])} shards; unigram entropy {result['unigram_entropy']:.3f} nats")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _workers(config: PrepareConfig) -> int:
    return config.workers or len(os.sched_getaffinity(0))


def _sentences(config: PrepareConfig, text: Path) -> dict[str, Any]:
    documents = read_documents(config.corpus, _workers(config))
    counts = write_sentences(documents, text, config.corpus.language, config.corpus.drop_repeated_sentences)
    if counts.documents == 0:
        raise ConfigError(f"corpus.path {config.corpus.path!r} holds no text: every document is empty")
    if counts.documents == 1:
        raise ConfigError(
            "the corpus is one document only, so no segment from another document can be drawn; give more files, or "
            "let corpus.documents (file, blank_line) divide it"
        )
    return asdict(counts)


def _lines(text: Path, purpose: str) -> Iterator[str]:
    with tqdm(total=text.stat().st_size, unit="B", unit_scale=True, desc=purpose, disable=None) as progress:
        for sentences in read_sentences(text):
            yield from sentences
            progress.update(sum(map(len, sentences)))


def _tokenizer(config: PrepareConfig, text: Path, folder: Path, given: Vocabulary | None) -> dict[str, Any]:
    vocabulary = given or train_vocabulary(lambda: _lines(text, "train"), config.vocab_size, config.lowercase)
    write_tokenizer(vocabulary, folder)
    return {"vocabulary": len(vocabulary.tokens)}


def _token_ids(
    config: PrepareConfig, text: Path, documents: int, vocabulary: Vocabulary, corpus_dir: Path
) -> dict[str, Any]:
    progress = tqdm(read_sentences(text), total=documents, unit=" documents", desc="encode", disable=None)
    counts = tokenise(progress, vocabulary, corpus_dir, config.seed, config.heldout_fraction)
    training = counts.documents - counts.heldout_documents
    found = f"{training} documents for training and {counts.heldout_documents} held out"
    if training < 2 or (config.heldout_fraction > 0 and counts.heldout_documents < 2):
        raise ConfigError(
            f"heldout_fraction is {config.heldout_fraction}, which leaves {found} of {counts.documents}; both need two "
            "or more, because a random next segment comes from another document: give more documents, another "
            "heldout_fraction (0: no held-out shards) or another seed"
        )
    return asdict(counts)


def _sample_config(config: PrepareConfig) -> SampleConfig:
    most = config.max_predictions or max(1, round(config.masked_lm_prob * config.sequence_length))
    return SampleConfig(
        sequence_length=config.sequence_length,
        max_predictions=most,
        masked_lm_prob=config.masked_lm_prob,
        short_seq_prob=config.short_seq_prob,
        dupe_factor=config.dupe_factor,
        whole_word_masking=config.whole_word_masking,
        samples_per_shard=config.samples_per_shard,
        seed=config.seed,
    )


def _describe_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "vocab_size": len(vocabulary.tokens),
        "vocab_hash": vocabulary.vocab_hash,
        "tokenizer_hash": vocabulary.tokenizer_hash,
        "lowercase": vocabulary.lowercase,
        "special_ids": {token: vocabulary.tokens.index(token) for token in SPECIAL_TOKENS},
    }


def _describe_sources(corpus: CorpusConfig, counts: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    sources = corpus_sources(corpus)
    return [{**asdict(sources[name]), **counts[name]} for name in counts]


if __name__ == "__main__":
    main()
