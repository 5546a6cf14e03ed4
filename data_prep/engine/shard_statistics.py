"""Statistics of the samples in shards: checked and printed by ``verify``, plotted by ``data-report``."""

from dataclasses import dataclass, field

import numpy as np

from bert_pretrain.data.masking_rule import restore_ids
from bert_pretrain.data.shard_directory import SPLITS
from bert_pretrain.data.shards import Arrays
from bert_pretrain.errors import ConfigError
from data_prep.samples.tokenizer import Vocabulary

_DEVIATIONS = 6.0  # standard deviations that a share may be from its expectation


def _no_counts() -> np.ndarray:
    return np.zeros(1, dtype=np.int64)


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
    single_segment: int = 0
    lengths: np.ndarray = field(default_factory=_no_counts)  # [n]: samples of n tokens
    masks: np.ndarray = field(default_factory=_no_counts)  # [n]: samples with n masked tokens
    positions: np.ndarray = field(default_factory=_no_counts)  # [n]: masks at position n
    tokens: np.ndarray = field(default_factory=_no_counts)  # [n]: uses of token n, before masking
    corpora: dict[str, int] = field(default_factory=dict)  # samples of each corpus, if there are several
    examples: list[Arrays] = field(default_factory=list)


def count_rows(arrays: Arrays, vocabulary: Vocabulary | None, probability: float | None, totals: Totals) -> None:
    """Add samples to ``totals``. ``probability``: masked_lm_prob, or None if it is not known (legacy shards)."""
    predicted = arrays["masked_lm_positions"] > 0
    lengths = arrays["input_mask"].sum(1)
    inputs = np.take_along_axis(arrays["input_ids"], arrays["masked_lm_positions"], axis=1)[predicted]
    labels = arrays["masked_lm_ids"][predicted]
    if vocabulary is not None:
        mask_id = vocabulary.roles["mask"]
        real = restore_ids(arrays)[arrays["input_mask"] > 0]
        totals.unknown_tokens += int(np.count_nonzero(real == vocabulary.roles["unk"]))
        totals.tokens = _summed(totals.tokens, real, len(vocabulary.tokens))
    else:
        mask_id = int(np.bincount(inputs).argmax()) if len(inputs) else 0
    totals.samples += len(lengths)
    totals.slots += arrays["input_ids"].size
    totals.real_tokens += int(lengths.sum())
    totals.predictions += len(labels)
    totals.samples_without_predictions += int(np.count_nonzero(~predicted.any(1)))
    totals.as_mask += int(np.count_nonzero(inputs == mask_id))
    totals.as_original += int(np.count_nonzero(inputs == labels))
    totals.as_random += int(np.count_nonzero((inputs != labels) & (inputs != mask_id)))
    totals.random_next += int(arrays["next_sentence_labels"].sum())
    totals.single_segment += int(np.count_nonzero(~arrays["segment_ids"].any(1)))
    length, most = arrays["input_ids"].shape[1], predicted.shape[1]
    totals.lengths = _summed(totals.lengths, lengths, length + 1)
    totals.masks = _summed(totals.masks, predicted.sum(1), most + 1)
    totals.positions = _summed(totals.positions, arrays["masked_lm_positions"][predicted], length)
    if probability is not None:
        wanted = np.clip(np.rint(probability * lengths), 1, predicted.shape[1])
        totals.expected_predictions += float(wanted.sum())


def _summed(before: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Add the counts (size,) of ``values`` to ``before``."""
    return np.pad(before, (0, size - len(before))) + np.bincount(values, minlength=size)


def check_shares(totals: Totals, where: str, whole_word: bool, mask_share: float, random_share: float) -> None:
    """Raise ``ConfigError`` if the number of masks, or the shares of what replaces them, differ by more than chance."""
    share = totals.predictions / max(1.0, totals.expected_predictions)
    if totals.legacy_shards == 0 and not (0.8 if whole_word else 0.99) <= share <= 1.0:
        raise ConfigError(f"{where}: {totals.predictions} masks, but {totals.expected_predictions:.0f} were expected")
    count = totals.predictions
    kept = max(0.0, 1 - mask_share - random_share)
    for name, found, share in (("[MASK]", totals.as_mask, mask_share), ("the original", totals.as_original, kept)):
        # the last term: a random token may be the original
        slack = _DEVIATIONS * (share * (1 - share) * max(1, count)) ** 0.5 + 0.001 * count
        if abs(found - share * count) > slack:
            raise ConfigError(f"{where}: {found / count:.1%} of {count} masked positions hold {name}, not {share:.0%}")


def table_rows(totals: Totals) -> dict[str, str]:
    """The statistics of one split as a table: name -> value."""
    count = max(1, totals.predictions)
    return {
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
        "single segment": f"{totals.single_segment / max(1, totals.samples):.1%}",
        **{f"samples of {name}": f"{samples:,}" for name, samples in totals.corpora.items()},
    }


def show_sample(arrays: Arrays, vocabulary: Vocabulary | None) -> str:
    """One sample (arrays of one row) as text. A masked position is shown as ``{input token|original token}``."""
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


def piece_shares(pieces: dict[str, dict[str, dict[str, int]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Pieces a word (0 if the tokenizer marks no words) and share of unknown pieces, of ``{when: {split: counts}}``."""
    return {
        split: {
            when: {
                "pieces_a_word": round(count["pieces"] / count["words"], 4) if count["words"] else 0.0,
                "unknown_share": round(count["unknown"] / count["pieces"], 6),
            }
            for when, splits in pieces.items()
            if (count := splits[split])["pieces"]
        }
        for split in SPLITS
    }


def describe_shares(shares: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """:func:`piece_shares` as lines of text."""
    return [
        f"{split}: "
        + "; ".join(
            f"{f'{when} words were added, ' if len(values) > 1 else ''}{of['pieces_a_word']:.3f} pieces a word, "
            f"{of['unknown_share']:.3%} unknown"
            for when, of in values.items()
        )
        for split, values in shares.items()
        if values
    ]
