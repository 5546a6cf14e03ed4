"""What ``manifest.json`` says of a preparation: its shards, what they were made from and with, what was counted."""

import platform
from importlib import metadata
from typing import Any

from bert_pretrain.data.shards import ShardHeader
from data_prep.corpus import corpus_sources
from data_prep.engine.local import Record
from data_prep.engine.shard_statistics import piece_shares
from data_prep.engine.stages import merge_counts
from data_prep.options import CorpusConfig, PrepareConfig
from data_prep.samples.tokenizer import Vocabulary
from data_prep.text.duplicates import TextPart

ENCODING = "token ids"
"""The stage that counts the pieces of words."""
_PACKAGES = ("bert-pretrain", "tokenizers", "numpy", "rensa")


def shard_header(config: PrepareConfig, length: int, most: int, vocabulary: Vocabulary) -> ShardHeader:
    """The header of training shards of sequence length ``length`` with up to ``most`` masked tokens a sample."""
    return ShardHeader(
        sequence_length=length,
        max_predictions=most,
        vocab_size=len(vocabulary.tokens),
        vocab_hash=vocabulary.vocab_hash,
        tokenizer_hash=vocabulary.tokenizer_hash,
        masked_lm_prob=config.masked_lm_prob,
        mask_share=config.mask_share,
        random_share=config.random_share,
        whole_word_masking=config.whole_word_masking,
        short_seq_prob=config.short_seq_prob,
        dupe_factor=config.dupe_factor,
        seed=config.seed,
        split="train",
    )


def describe_samples(records: dict[str, list[Record]]) -> Record:
    """The counts of all buckets added up, by length and split."""
    merged = {split: merge_counts(of_split) for split, of_split in records.items()}
    lengths = next(iter(merged.values()))
    return {length: {split: merged[split][length] for split in merged} for length in lengths}


def describe_sources(corpora: dict[str, CorpusConfig], parts: list[TextPart], records: list[Record]) -> list[Record]:
    """The sources of all corpora, with the documents and characters of each."""
    rows = []
    for name, corpus in corpora.items():
        mine = [record["by_source"] for part, record in zip(parts, records, strict=True) if part.corpus == name]
        sources = corpus_sources(name, corpus)
        given = {"corpus": name, "language": corpus.language, "weight": corpus.weight}
        rows += [{**given, **sources[key], **counts} for key, counts in merge_counts(mine).items()]
    return rows


def new_manifest(
    rows: list[Record],
    entropy: float,
    header: ShardHeader,
    vocabulary: Vocabulary,
    sources: list[Record],
    corpora: list[str],
    stages: list[Record],
    options: dict[str, Any],
) -> dict[str, Any]:
    """The manifest of the shards ``rows`` of one sequence length. ``entropy``: of their masked words, in nats."""
    return {
        "shards": rows,
        "sequence_length": header.sequence_length,
        "max_predictions": header.max_predictions,
        "unigram_entropy": entropy,
        "tokenizer": {
            "vocab_size": header.vocab_size,
            "vocab_hash": header.vocab_hash,
            "tokenizer_hash": header.tokenizer_hash,
            "lowercase": vocabulary.lowercase,
            "strip_accents": vocabulary.strips_accents,
            "special_ids": {vocabulary.tokens[number]: number for number in vocabulary.roles.values()},
            "text": _text_shares(stages),
        },
        "sources": sources,
        **({"corpora": corpora} if len(corpora) > 1 else {}),
        "stages": stages,
        "options": options,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
    }


def grown_manifest(before: dict[str, Any], new: dict[str, Any], number: int, corpora: dict[str, Any]) -> dict[str, Any]:
    """The manifest ``before`` with what the append ``number`` has added, which alone would have the manifest ``new``.

    ``corpora``: the options of the appended text. The stages of an append have its number in their names.
    """
    stages = [{**stage, "stage": f"{stage['stage']} (append {number})"} for stage in new["stages"]]
    grown = {
        **before,
        "shards": before["shards"] + new["shards"],
        "unigram_entropy": new["unigram_entropy"],
        "sources": before["sources"] + new["sources"],
        "stages": before["stages"] + stages,
        "appended": [*before.get("appended", []), corpora],
    }
    grown["tokenizer"] = {**before["tokenizer"], "text": _text_shares(grown["stages"])}
    if "corpora" in new:
        grown["corpora"] = new["corpora"]
    return grown


def _text_shares(stages: list[Record]) -> Record:
    """:func:`piece_shares` of all text that was encoded."""
    counts = [stage.get("pieces", {}) for stage in stages if stage["stage"].startswith(ENCODING)]
    return piece_shares(merge_counts(counts))
