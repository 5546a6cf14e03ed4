"""Entry point: prove a directory of shards sound, and show what is in it.

    python -m data_prep.verify dir=data/demo

Every shard is read whole. A fault ends the command with one message and status 2. Shards without header and
manifest, as the published pipeline wrote them, are checked as far as they can be; without a vocabulary (a
``tokenizer/`` folder beside them, or ``vocab=``) their masks are taken for what most masked places hold.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.masking import SPECIAL_TOKENS, restore_ids
from bert_pretrain.shards import SPLITS, Arrays, ShardReader, read_manifest, shard_paths
from bert_pretrain.structured import entry_point
from data_prep.tokenizer import Vocabulary, load_vocabulary

_ROWS = 16_384  # read at once
_DEVIATIONS = 6.0  # a share further from its expectation than this many standard deviations is a fault
_LARGEST_VOCAB = 1 << 31


@dataclass
class VerifyConfig:
    """The options of ``configs/verify.yaml``."""

    dir: str
    samples: int
    vocab: str | None
    lowercase: bool

    def __post_init__(self) -> None:
        require(self.samples >= 0, "samples", self.samples, "0 or more")


@dataclass
class Totals:
    """Sums over the samples of one split."""

    samples: int = 0
    shards: int = 0
    legacy_shards: int = 0
    slots: int = 0
    real_tokens: int = 0
    unknown_tokens: int = 0
    predictions: int = 0
    expected_predictions: float = 0.0
    samples_without_predictions: int = 0
    as_mask: int = 0
    as_original: int = 0
    as_random: int = 0
    random_next: int = 0
    examples: list[Arrays] = field(default_factory=list)


@entry_point("verify", VerifyConfig)
def main(config: VerifyConfig) -> None:
    """Check all shards of a directory; print a table and a few samples."""
    directory = Path(config.dir)
    vocabulary = _vocabulary(config, directory)
    for split in SPLITS:
        paths = shard_paths(directory, split)
        if not paths:
            print(f"{split}: no shards")
            continue
        totals = verify_split(directory, paths, vocabulary, config.samples)
        _print_table(split, totals)
        for arrays in totals.examples:
            print(show_sample(arrays, vocabulary))
    print(f"{directory} is sound")


def _vocabulary(config: VerifyConfig, directory: Path) -> Vocabulary | None:
    if config.vocab:
        return load_vocabulary(Path(config.vocab), config.lowercase)
    folder = directory / "tokenizer"
    return load_vocabulary(folder, config.lowercase) if folder.is_dir() else None


def verify_split(directory: Path, paths: list[Path], vocabulary: Vocabulary | None, examples: int) -> Totals:
    """Check every shard in ``paths``; returns the sums and the first ``examples`` samples.

    Raises ``ConfigError`` at the first fault.
    """
    manifest = read_manifest(directory)
    rows = {row["name"]: row for row in manifest["shards"]} if manifest else {}
    totals = Totals()
    shape: tuple[int, int] | None = None
    whole_word = False
    for path in paths:
        reader = ShardReader(path)
        _check_header(reader, rows.get(path.name), vocabulary)
        if shape is not None and shape != (reader.sequence_length, reader.max_predictions):
            raise ConfigError(
                f"shard {path} has L={reader.sequence_length}, P={reader.max_predictions}, "
                f"the shards before it L={shape[0]}, P={shape[1]}: one directory holds one kind of shard"
            )
        shape = reader.sequence_length, reader.max_predictions
        size = len(vocabulary.tokens) if vocabulary else reader.header.vocab_size if reader.header else _LARGEST_VOCAB
        reader.check_content(size)
        whole_word = whole_word or (reader.header is not None and reader.header.whole_word_masking)
        probability = reader.header.masked_lm_prob if reader.header else None
        for start in range(0, reader.samples, _ROWS):
            stored = reader.read(start, min(start + _ROWS, reader.samples))
            arrays = {name: values.astype(np.int64) for name, values in stored.items()}
            check_rows(arrays, vocabulary, f"shard {path}, samples from {start}", reader.header is None)
            count_rows(arrays, vocabulary, probability, totals)
            for row in range(min(examples - len(totals.examples), len(arrays["input_ids"]))):
                totals.examples.append({name: values[row : row + 1] for name, values in arrays.items()})
        totals.shards += 1
        totals.legacy_shards += reader.header is None
        reader.close()
    check_shares(totals, f"{directory}, {paths[0].name} and on", whole_word)
    return totals


def _check_header(reader: ShardReader, row: dict | None, vocabulary: Vocabulary | None) -> None:
    header = reader.header
    if row is not None and (row["samples"] != reader.samples or row["checksum"] != reader.checksum):
        raise ConfigError(
            f"shard {reader.path}: manifest.json says {row['samples']} samples with checksum {row['checksum']}, "
            f"the file {reader.samples} with {reader.checksum}: they are not from the same preparation"
        )
    if header is None:
        return
    if row is not None and row["split"] != header.split:
        raise ConfigError(f"shard {reader.path} is of split {header.split}; manifest.json says {row['split']}")
    if (header.sequence_length, header.max_predictions) != (reader.sequence_length, reader.max_predictions):
        raise ConfigError(
            f"shard {reader.path}: its header says L={header.sequence_length}, P={header.max_predictions}, "
            f"its data L={reader.sequence_length}, P={reader.max_predictions}"
        )
    if vocabulary is not None and header.vocab_hash != vocabulary.vocab_hash:
        raise ConfigError(f"shard {reader.path} was made with another vocabulary than the tokenizer beside it")


def check_rows(arrays: Arrays, vocabulary: Vocabulary | None, where: str, legacy: bool) -> None:
    """Check the structure of samples, int64 arrays as read from a shard. Raises ``ConfigError``.

    In legacy files special tokens may stand at masked places, as random words.
    """
    ids, mask, segments = arrays["input_ids"], arrays["input_mask"], arrays["segment_ids"]
    positions, labels = arrays["masked_lm_positions"], arrays["masked_lm_ids"]
    lengths = mask.sum(1)
    columns = np.arange(ids.shape[1])
    real = columns < lengths[:, None]
    predicted = positions > 0
    counts = predicted.sum(1)
    inner = (columns > 0) & (columns < lengths[:, None] - 1)
    rows = np.arange(len(ids))
    checks = {
        "input_mask is not ones followed by zeros": (mask == real).all(1) & (lengths >= 3),
        "input_ids is not 0 in the padding": ((ids == 0) | real).all(1),
        "segment_ids is not 0s, then 1s, then 0s in the padding": (
            ((segments == 0) | real).all(1)
            & ((np.diff(segments, axis=1) >= 0) | ~real[:, 1:]).all(1)
            & (segments[rows, lengths - 1] == 1)
            & (segments[:, 0] == 0)
        ),
        "masked_lm_positions is not ascending and 0-padded": (
            (predicted == (np.arange(positions.shape[1]) < counts[:, None])).all(1)
            & ((np.diff(positions, axis=1) > 0) | ~predicted[:, 1:]).all(1)
        ),
        "a masked position is outside of the tokens between [CLS] and the last [SEP]": (
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
    special = {token: vocabulary.tokens.index(token) for token in SPECIAL_TOKENS}
    ids, segments = restore_ids(arrays), arrays["segment_ids"]
    real = np.arange(ids.shape[1]) < lengths[:, None]
    rows = np.arange(len(ids))
    first_of_b = np.argmax(segments == 1, axis=1)
    predicted = arrays["masked_lm_positions"] > 0
    checks = {
        "no [CLS] at the start": ids[:, 0] == special["[CLS]"],
        "no [SEP] at the end": ids[rows, lengths - 1] == special["[SEP]"],
        "no [SEP] before the second segment": ids[rows, first_of_b - 1] == special["[SEP]"],
        "a [CLS] or [SEP] within a segment": (
            ((ids == special["[CLS]"]) & real).sum(1) + ((ids == special["[SEP]"]) & real).sum(1) == 3
        ),
    }
    if not legacy:
        banned = list(special.values())
        checks["a special token was masked"] = ~(np.isin(arrays["masked_lm_ids"], banned) & predicted).any(1)
        stands = np.take_along_axis(arrays["input_ids"], arrays["masked_lm_positions"], axis=1)
        banned.remove(special["[MASK]"])
        checks["a special token stands at a masked place"] = ~(np.isin(stands, banned) & predicted).any(1)
    return checks


def count_rows(arrays: Arrays, vocabulary: Vocabulary | None, probability: float | None, totals: Totals) -> None:
    """Add samples to ``totals``. ``probability`` None (legacy): the expected number of masks is not known."""
    predicted = arrays["masked_lm_positions"] > 0
    lengths = arrays["input_mask"].sum(1)
    stands = np.take_along_axis(arrays["input_ids"], arrays["masked_lm_positions"], axis=1)[predicted]
    labels = arrays["masked_lm_ids"][predicted]
    if vocabulary is not None:
        mask_id = vocabulary.tokens.index("[MASK]")
        totals.unknown_tokens += int(np.count_nonzero(restore_ids(arrays) == vocabulary.tokens.index("[UNK]")))
    else:
        mask_id = int(np.bincount(stands).argmax()) if len(stands) else 0
    totals.samples += len(lengths)
    totals.slots += arrays["input_ids"].size
    totals.real_tokens += int(lengths.sum())
    totals.predictions += len(labels)
    totals.samples_without_predictions += int(np.count_nonzero(~predicted.any(1)))
    totals.as_mask += int(np.count_nonzero(stands == mask_id))
    totals.as_original += int(np.count_nonzero(stands == labels))
    totals.as_random += int(np.count_nonzero((stands != labels) & (stands != mask_id)))
    totals.random_next += int(arrays["next_sentence_labels"].sum())
    if probability is not None:
        wanted = np.clip(np.rint(probability * lengths), 1, predicted.shape[1])
        totals.expected_predictions += float(wanted.sum())


def check_shares(totals: Totals, where: str, whole_word: bool) -> None:
    """Raise ``ConfigError`` where the number of masks, or the 80/10/10 among them, cannot be by chance."""
    allowed = totals.predictions / max(1.0, totals.expected_predictions)
    if totals.legacy_shards == 0 and not (0.8 if whole_word else 0.99) <= allowed <= 1.0:
        raise ConfigError(f"{where}: {totals.predictions} masks, but {totals.expected_predictions:.0f} were expected")
    count = totals.predictions
    for name, found, share in (("[MASK]", totals.as_mask, 0.8), ("the original", totals.as_original, 0.1)):
        slack = (
            _DEVIATIONS * (share * (1 - share) * max(1, count)) ** 0.5 + 0.001 * count
        )  # random may hit the original
        if abs(found - share * count) > slack:
            raise ConfigError(f"{where}: {found / count:.1%} of {count} masked places hold {name}, not {share:.0%}")


def _print_table(split: str, totals: Totals) -> None:
    count = max(1, totals.predictions)
    rows = {
        "shards": f"{totals.shards}" + (f" ({totals.legacy_shards} legacy)" if totals.legacy_shards else ""),
        "samples": f"{totals.samples:,}",
        "tokens": f"{totals.real_tokens:,}",
        "tokens a sample": f"{totals.real_tokens / max(1, totals.samples):.1f}",
        "padding": f"{1 - totals.real_tokens / max(1, totals.slots):.1%}",
        "unknown tokens": f"{totals.unknown_tokens / max(1, totals.real_tokens):.3%}",
        "masked": f"{totals.predictions / max(1, totals.real_tokens):.2%} of the tokens",
        "samples without masks": f"{totals.samples_without_predictions:,}",
        "[MASK] / same / random": f"{totals.as_mask / count:.1%} / {totals.as_original / count:.1%}"
        f" / {totals.as_random / count:.1%}",
        "random next": f"{totals.random_next / max(1, totals.samples):.1%}",
    }
    print(f"{split}")
    for name, value in rows.items():
        print(f"  {name:<24}{value}")


def show_sample(arrays: Arrays, vocabulary: Vocabulary | None) -> str:
    """One sample (arrays of one row) as text; a masked place reads ``{what stands there|the original}``."""
    length = int(arrays["input_mask"].sum())
    originals = dict(zip(arrays["masked_lm_positions"][0].tolist(), arrays["masked_lm_ids"][0].tolist(), strict=True))

    def word(token: int) -> str:
        return vocabulary.tokens[token] if vocabulary else str(token)

    words = []
    for position, token in enumerate(arrays["input_ids"][0, :length].tolist()):
        text = word(token)
        if position > 0 and position in originals:
            text = f"{{{text}|{word(originals[position])}}}"
        words.append(text)
    label = "random next" if arrays["next_sentence_labels"][0] else "true next"
    return f"  ({label}) {' '.join(words).replace(' ##', '')}"


if __name__ == "__main__":
    main()
