"""BERT's special tokens, how samples are masked (``masking`` does it), and the ids before that. Loads no numba."""

from dataclasses import dataclass

import numpy as np

from bert_pretrain.errors import ConfigError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass
class MaskingRule:
    """How samples are masked.

    ``special_ids`` are never chosen and never drawn as random words. ``is_continuation`` (vocab_size,) is true for the
    ids of ``##`` pieces. If it is given, whole words are masked: the words of a sample are taken in random order, and
    one that would exceed ``n`` is skipped (a sample whose words all have more than ``n`` pieces gets no mask). A word
    ends at a special token, even if the next segment starts with a ``##`` piece.

    ``mask_share`` of the chosen tokens become [MASK], ``random_share`` a random word. Raises ``ConfigError`` if the two
    are more than 1 together, and if all tokens are special.
    """

    masked_lm_prob: float
    max_predictions: int
    mask_id: int
    vocab_size: int
    special_ids: np.ndarray
    is_continuation: np.ndarray | None = None
    mask_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        self.is_special = np.zeros(self.vocab_size, dtype=np.bool_)
        self.is_special[np.asarray(self.special_ids, dtype=np.int64)] = True
        self.words = np.flatnonzero(~self.is_special).astype(np.int64)
        if len(self.words) == 0:
            raise ConfigError(f"the vocabulary has {self.vocab_size} entries, all of them special tokens")
        if self.mask_share + self.random_share > 1:
            raise ConfigError(
                f"mask_share is {self.mask_share} and random_share is {self.random_share}; allowed: up to 1 together"
            )

    @classmethod
    def of_vocabulary(
        cls, tokens: list[str], masked_lm_prob: float, max_predictions: int, whole_word: bool
    ) -> "MaskingRule":
        """The rule for a WordPiece vocabulary; ``tokens`` in the order of their ids, as in ``vocab.txt``.

        Raises ``ConfigError`` if one of ``SPECIAL_TOKENS`` is missing.
        """
        missing = [token for token in SPECIAL_TOKENS if token not in tokens]
        if missing:
            raise ConfigError(f"the vocabulary has no {', '.join(missing)}; BERT needs {' '.join(SPECIAL_TOKENS)}")
        special = np.array([tokens.index(token) for token in SPECIAL_TOKENS])
        continuation = np.array([token.startswith("##") for token in tokens]) if whole_word else None
        mask_id = tokens.index("[MASK]")
        return cls(masked_lm_prob, max_predictions, mask_id, len(tokens), special, continuation)


def restore_ids(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The ids (n, L) before masking, from the rows of a shard: a new array in the dtype of ``input_ids``."""
    restored = np.array(arrays["input_ids"], order="C")
    rows, columns = np.nonzero(arrays["masked_lm_positions"])  # position 0 is [CLS]: it marks padding
    positions = arrays["masked_lm_positions"][rows, columns]
    restored[rows, positions] = arrays["masked_lm_ids"][rows, columns].astype(restored.dtype)
    return restored
