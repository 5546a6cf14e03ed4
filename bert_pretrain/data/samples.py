"""Rows of token ids -> samples of one segment: [CLS] tokens [SEP], the rest padding."""

from dataclasses import dataclass

import numpy as np

from bert_pretrain.data.masking_rule import MaskingRule
from bert_pretrain.data.shards import Arrays, select


def is_held_out(rows: np.ndarray, stride: int) -> np.ndarray:
    """Whether each row, by its number in its file (n,), is held out, (n,) bool: every ``stride``-th, with 0 none."""
    return rows % stride == stride // 2 if stride else np.zeros(len(rows), np.bool_)


@dataclass(frozen=True)
class RowCutter:
    """Cuts rows into samples of up to ``length`` tokens.

    With ``adds`` each sample is [CLS] piece [SEP]. Without, a row [CLS] ... [SEP] is cut between these two and each
    piece gets them again; any other row (such as a part of text that others have cut) is taken as it is.
    """

    length: int
    cls: int
    sep: int
    pad: int
    adds: bool
    splits: bool
    """Whether a longer row becomes several samples; else what is behind the first is dropped."""

    def pieces(self, lengths: np.ndarray, framed: np.ndarray) -> np.ndarray:
        """Samples of each row, (n,) int64. ``lengths`` (n,): its ids; ``framed`` (n,): if it is [CLS] ... [SEP]."""
        whole = np.zeros_like(framed) if self.adds else framed
        bodies = np.where(whole, lengths - 2, lengths)
        room = np.where(whole | self.adds, self.length - 2, self.length)
        count = -(-np.maximum(bodies, 0) // room)
        return count if self.splits else np.minimum(count, 1)

    def piece(self, row: np.ndarray, number: int) -> np.ndarray:
        """The ids of a row's sample ``number``, without padding."""
        is_framed = not self.adds and len(row) > 1 and row[0] == self.cls and row[-1] == self.sep
        if not self.adds and not is_framed:
            return row[number * self.length : (number + 1) * self.length]
        body, room = row[1:-1] if is_framed else row, self.length - 2
        return np.concatenate([[self.cls], body[number * room : (number + 1) * room], [self.sep]])

    def all_pieces(self, row: np.ndarray) -> list[np.ndarray]:
        """All samples of a row without special tokens, to which they are added."""
        (count,) = self.pieces(np.array([len(row)]), np.array([False]))
        return [self.piece(row, number) for number in range(count)]


def unmasked(samples: list[np.ndarray], length: int, rule: MaskingRule, pad: int) -> Arrays:
    """Samples (without padding) as the rows of a shard in which nothing is masked yet."""
    n = len(samples)
    kind = np.uint16 if rule.vocab_size <= 1 << 16 else np.int32
    ids = np.full((n, length), pad, kind)
    mask = np.zeros((n, length), np.int8)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)] = sample
        mask[row, : len(sample)] = 1
    return {
        "input_ids": ids,
        "input_mask": mask,
        "segment_ids": np.zeros((n, length), np.int8),
        "masked_lm_positions": np.zeros((n, rule.max_predictions), np.int32),
        "masked_lm_ids": np.zeros((n, rule.max_predictions), kind),
        "next_sentence_labels": np.zeros(n, np.int8),
    }


class MaskedSamples:
    """Samples in memory with masks that stay: for evaluation."""

    def __init__(self, arrays: Arrays, fingerprint: str) -> None:
        self._arrays, self.fingerprint = arrays, fingerprint
        self.samples = len(arrays["input_ids"])
        self.max_predictions = arrays["masked_lm_positions"].shape[1]

    def read(self, start: int, stop: int) -> Arrays:
        """Samples ``start`` to ``stop``."""
        return select(self._arrays, slice(start, stop))
