"""``bert-pretrain verify``: check every shard of a directory.

Shards of NVIDIA's published pipeline, without header and manifest, are checked as far as possible. Without a
vocabulary the most frequent token at masked positions is taken for [MASK].
"""

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bert_pretrain.data.masking_rule import MaskingRule, restore_ids
from bert_pretrain.data.shard_directory import (
    MANIFEST,
    SPLITS,
    check_listed,
    directory_notes,
    read_manifest,
    shard_folder,
    shard_paths,
    shortened,
    unlisted,
)
from bert_pretrain.data.shards import Arrays, ShardReader
from bert_pretrain.errors import ConfigError
from bert_pretrain.options.entry_point import entry_point
from data_prep.engine.shard_statistics import Totals, check_shares, count_rows, show_sample, table_rows
from data_prep.options import VerifyConfig
from data_prep.samples.tokenizer import Vocabulary, load_vocabulary

_ROWS = 16_384  # read at once
_LARGEST_VOCAB = 1 << 31


@entry_point("verify", VerifyConfig)
def main(config: VerifyConfig) -> None:
    """Check every shard of a directory, and print statistics and a few samples.

        bert-pretrain verify dir=data/demo

    Checks the manifest, shapes, ids, masks and checksums; the first fault is reported, with exit status 2. Shards of
    NVIDIA's published pipeline, which have no manifest and no checksums, are checked as far as possible.
    """
    directory = shard_folder(config.dir, config)
    manifest = read_manifest(directory) if directory.is_dir() else None
    extra = unlisted(directory, manifest) if manifest else []
    if extra:
        raise ConfigError(
            f"{directory} holds {shortened(extra)}, which {MANIFEST} does not list and no training reads; move what "
            f"belongs to another preparation elsewhere, run an append that was stopped again, or restore the {MANIFEST}"
        )
    for note in directory_notes(directory) if directory.is_dir() else []:
        print(note)
    vocabulary = find_vocabulary(config.vocab, config.lowercase, directory)
    for split in SPLITS:
        paths = shard_paths(directory, split)
        if not paths:
            print(f"{split}: no shards")
            continue
        totals = verify_split(directory, paths, vocabulary, config.samples)
        print("\n".join([split, *(f"  {name:<24}{value}" for name, value in table_rows(totals).items())]))
        for arrays in totals.examples:
            print(show_sample(arrays, vocabulary))
    print(f"{config.dir}: no faults found")


def find_vocabulary(given: str | None, lowercase: bool, directory: Path) -> Vocabulary | None:
    """The given vocabulary, else the one beside the shards, else None."""
    if given:
        return load_vocabulary(Path(given), lowercase)
    folder = directory / "tokenizer"
    return load_vocabulary(folder, lowercase) if folder.is_dir() else None


def verify_split(directory: Path, paths: list[Path], vocabulary: Vocabulary | None, examples: int) -> Totals:
    """Check every shard in ``paths``; return statistics and the first ``examples`` samples.

    Raises ``ConfigError`` at the first fault.
    """
    manifest = read_manifest(directory)
    totals = Totals()
    shape: tuple[int, int] | None = None
    whole_word = False
    shares = (MaskingRule.mask_share, MaskingRule.random_share)
    for path in tqdm(paths, unit=" shards", desc="read", disable=None, leave=False):
        reader = ShardReader(path)
        _check_header(reader, manifest, vocabulary)
        if shape is not None and shape != (reader.sequence_length, reader.max_predictions):
            raise ConfigError(
                f"shard {path} has L={reader.sequence_length}, P={reader.max_predictions}, "
                f"the shards before it L={shape[0]}, P={shape[1]}; all shards of a directory must have the same shape"
            )
        shape = reader.sequence_length, reader.max_predictions
        header = reader.header
        reader.check_content(len(vocabulary.tokens) if vocabulary else header.vocab_size if header else _LARGEST_VOCAB)
        whole_word = whole_word or (header is not None and header.whole_word_masking)
        shares = (header.mask_share, header.random_share) if header is not None else shares
        probability = header.masked_lm_prob if header else None
        for start in range(0, reader.samples, _ROWS):
            stored = reader.read(start, min(start + _ROWS, reader.samples))
            arrays = {name: values.astype(np.int64) for name, values in stored.items()}
            check_rows(arrays, vocabulary, f"shard {path}, samples from {start}", header is None)
            count_rows(arrays, vocabulary, probability, totals)
            for row in range(min(examples - len(totals.examples), len(arrays["input_ids"]))):
                totals.examples.append({name: values[row : row + 1] for name, values in arrays.items()})
        if manifest is not None:  # it has the names
            _count_corpora(reader, manifest.get("corpora", []), totals)
        totals.shards += 1
        totals.legacy_shards += header is None
        reader.close()
    check_shares(totals, f"{directory}, {paths[0].name} and on", whole_word, *shares)
    return totals


def _count_corpora(reader: ShardReader, names: list[str], totals: Totals) -> None:
    """Add the samples of each corpus to ``totals``. Raises ``ConfigError`` for a corpus that has no name."""
    source = reader.source()
    for number, samples in enumerate([] if source is None else np.bincount(source)):
        if number >= len(names):
            raise ConfigError(f"shard {reader.path}: a sample is of corpus {number}; manifest.json names {len(names)}")
        totals.corpora[names[number]] = totals.corpora.get(names[number], 0) + int(samples)


def _check_header(reader: ShardReader, manifest: dict[str, Any] | None, vocabulary: Vocabulary | None) -> None:
    header = reader.header
    check_listed(reader, manifest)
    if header is None:
        return
    if (header.sequence_length, header.max_predictions) != (reader.sequence_length, reader.max_predictions):
        raise ConfigError(
            f"shard {reader.path}: its header has L={header.sequence_length}, P={header.max_predictions}, its data has "
            f"L={reader.sequence_length}, P={reader.max_predictions}"
        )
    if vocabulary is not None and header.vocab_hash != vocabulary.vocab_hash:
        raise ConfigError(
            f"shard {reader.path} was made with another vocabulary than the given one (vocab, or tokenizer/ beside it)"
        )


def check_rows(arrays: Arrays, vocabulary: Vocabulary | None, where: str, legacy: bool) -> None:
    """Check the structure of samples, int64 arrays of a shard. Raises ``ConfigError``.

    ``legacy``: special tokens are allowed at masked positions, where that pipeline uses them as random words.
    """
    ids = arrays["input_ids"]
    mask = arrays["input_mask"]
    segments = arrays["segment_ids"]
    positions = arrays["masked_lm_positions"]
    labels = arrays["masked_lm_ids"]
    pad = vocabulary.roles["pad"] if vocabulary else 0
    lengths = mask.sum(1)
    columns = np.arange(ids.shape[1])
    real = columns < lengths[:, None]
    predicted = positions > 0
    counts = predicted.sum(1)
    inner = (columns > 0) & (columns < lengths[:, None] - 1)
    rows = np.arange(len(ids))
    checks = {
        "input_mask is not ones followed by zeros": (mask == real).all(1) & (lengths >= 3),
        f"input_ids is not {pad} in the padding": ((ids == pad) | real).all(1),
        "segment_ids is not 0s, then 1s, then 0s in the padding": (
            ((segments == 0) | real).all(1)
            & ((np.diff(segments, axis=1) >= 0) | ~real[:, 1:]).all(1)
            & ((segments[rows, lengths - 1] == 1) | ~segments.any(1))
            & (segments[:, 0] == 0)
        ),
        "masked_lm_positions is not ascending and 0-padded": (
            (predicted == (np.arange(positions.shape[1]) < counts[:, None])).all(1)
            & ((np.diff(positions, axis=1) > 0) | ~predicted[:, 1:]).all(1)
        ),
        "a masked position is not between [CLS] and the last [SEP]": (
            np.take_along_axis(inner, positions, axis=1) | ~predicted
        ).all(1),
        "masked_lm_ids is not 0-padded": ((labels == 0) | predicted).all(1),
    }
    if vocabulary is not None:
        checks |= _special_checks(arrays, lengths, vocabulary, legacy)
    for fault, good in checks.items():
        if not good.all():
            raise ConfigError(f"{where}: {fault} (first in sample {int(np.argmin(good))} of these)")


def _special_checks(arrays: Arrays, lengths: np.ndarray, vocabulary: Vocabulary, legacy: bool) -> dict[str, np.ndarray]:
    special = vocabulary.roles
    ids, segments = restore_ids(arrays), arrays["segment_ids"]
    real = np.arange(ids.shape[1]) < lengths[:, None]
    rows = np.arange(len(ids))
    is_pair = segments.any(1)
    first_of_b = np.where(is_pair, np.argmax(segments == 1, axis=1), lengths)  # of a single segment: after its [SEP]
    predicted = arrays["masked_lm_positions"] > 0
    checks = {
        "no [CLS] at the start": ids[:, 0] == special["cls"],
        "no [SEP] at the end": ids[rows, lengths - 1] == special["sep"],
        "no [SEP] before the second segment": ids[rows, first_of_b - 1] == special["sep"],
        "a [CLS] or [SEP] within a segment": (
            ((ids == special["cls"]) & real).sum(1) + ((ids == special["sep"]) & real).sum(1) == 2 + is_pair
        ),
    }
    if not legacy:
        banned = list(vocabulary.table.special_ids)
        checks["a special token was masked"] = ~(np.isin(arrays["masked_lm_ids"], banned) & predicted).any(1)
        inputs = np.take_along_axis(arrays["input_ids"], arrays["masked_lm_positions"], axis=1)
        banned.remove(special["mask"])
        checks["a special token is at a masked position"] = ~(np.isin(inputs, banned) & predicted).any(1)
    return checks


if __name__ == "__main__":
    main()
