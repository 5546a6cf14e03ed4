"""Masked-LM masks for rows of token ids, static (when shards are written) or dynamic (while training).

Google's rule (create_pretraining_data.py, 2018): of a sample with ``t`` real tokens, [CLS] and [SEP] counted,
``n = min(P, max(1, round(masked_lm_prob * t)))`` tokens are predicted. Of these 80 % are replaced by [MASK] and 10 % by
a random word (both shares are options); the rest stays. Differences from the published code: special tokens ([UNK] and
[MASK] too) are never chosen, and a random word is never a special token.

Random numbers are keyed: the masks of a sample depend on (seed, epoch, index of the sample) only, so that any slice of
any batch on any number of processes gives the same masks. Needs numba and numpy only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bert_pretrain.data.masking_rule import MaskingRule
from bert_pretrain.jit import cached_njit

DynamicMasking = Callable[[dict[str, np.ndarray], int, np.ndarray], dict[str, np.ndarray]]
"""(shard rows, epoch, sample numbers) -> the same samples with the masks of that epoch."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)
_11, _27, _30, _31, _32 = (np.uint64(bits) for bits in (11, 27, 30, 31, 32))


# --- keyed random numbers: splitmix64 (Steele, Lea and Flood 2014); the state is an array of one uint64 ---


@cached_njit()
def next_random(state: np.ndarray) -> np.uint64:
    """Advance ``state`` and return 64 random bits."""
    state[0] += _GOLDEN
    z = state[0]
    z = (z ^ (z >> _30)) * _FACTOR_1
    z = (z ^ (z >> _27)) * _FACTOR_2
    return z ^ (z >> _31)


@cached_njit()
def set_key(state: np.ndarray, seed: int, first: int, second: int) -> None:
    """Set ``state`` to the start of the stream with this key: three integers, 0 or more."""
    state[0] = np.uint64(seed)
    state[0] = next_random(state) ^ np.uint64(first)
    state[0] = next_random(state) ^ np.uint64(second)
    state[0] = next_random(state)


@cached_njit()
def draw_below(state: np.ndarray, limit: int) -> Any:
    """A random integer from 0 to ``limit`` - 1, for a limit below 2^32 (bias below limit / 2^32)."""
    return np.int64(((next_random(state) >> _32) * np.uint64(limit)) >> _32)


@cached_njit()
def draw_unit(state: np.ndarray) -> float:
    """A random number in [0, 1), a multiple of 2^-53."""
    return np.float64(next_random(state) >> _11) * (1.0 / 9007199254740992.0)


# --- masking of samples ---


def mask_samples(
    input_ids: np.ndarray, lengths: np.ndarray, rule: MaskingRule, seed: int, epoch: int, sample_indexes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask samples; returns ``(ids, positions, labels)``.

    ``input_ids`` (n, L): the original ids, any integer dtype, not changed, all below ``vocab_size`` (shards are checked
    when opened). ``lengths`` (n,): real tokens of each row, which come first. The key is ``seed``, ``epoch`` and
    ``sample_indexes`` (n,), each 0 or more.

    ``ids`` (n, L) are masked, ``positions`` (n, P) int32, ascending, ``labels`` (n, P) the original ids there.
    Positions and labels are 0-padded; ids and labels have the dtype of ``input_ids``.
    """
    masked = np.array(input_ids, order="C")
    positions = np.zeros((len(masked), rule.max_predictions), dtype=np.int32)
    labels = np.zeros((len(masked), rule.max_predictions), dtype=masked.dtype)
    joined = np.zeros(rule.vocab_size, dtype=np.bool_) if rule.is_continuation is None else rule.is_continuation
    _mask_rows(
        masked,
        np.ascontiguousarray(lengths, dtype=np.int64),
        positions,
        labels,
        rule.is_special,
        joined,
        rule.words,
        rule.mask_id,
        rule.masked_lm_prob,
        rule.mask_share,
        1 - rule.random_share,
        seed,
        epoch,
        np.ascontiguousarray(sample_indexes, dtype=np.int64),
    )
    return masked, positions, labels


# --- the loops ---


@cached_njit()
def _mask_rows(
    ids: np.ndarray,
    lengths: np.ndarray,
    positions: np.ndarray,
    labels: np.ndarray,
    is_special: np.ndarray,
    is_continuation: np.ndarray,
    words: np.ndarray,
    mask_id: int,
    prob: float,
    mask_below: float,
    random_from: float,
    seed: int,
    epoch: int,
    indexes: np.ndarray,
) -> None:
    length = ids.shape[1]
    most = positions.shape[1]
    starts = np.empty(length + 1, dtype=np.int64)  # of the units masked together: tokens, or whole words
    sizes = np.empty(length + 1, dtype=np.int64)
    chosen = np.zeros(length, dtype=np.bool_)
    state = np.empty(1, dtype=np.uint64)
    for row in range(ids.shape[0]):
        units = _find_units(ids[row], lengths[row], is_special, is_continuation, starts, sizes)
        wanted = min(most, max(1, int(np.rint(prob * lengths[row]))))
        set_key(state, seed, epoch, indexes[row])
        _choose(state, starts, sizes, units, wanted, chosen)
        count = 0
        for position in range(lengths[row]):
            if chosen[position]:
                chosen[position] = False
                positions[row, count] = position
                labels[row, count] = ids[row, position]
                count += 1
                dice = draw_unit(state)
                if dice < mask_below:
                    ids[row, position] = mask_id
                elif dice >= random_from:
                    ids[row, position] = words[draw_below(state, len(words))]


@cached_njit()
def _find_units(
    row: np.ndarray,
    length: int,
    is_special: np.ndarray,
    is_continuation: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
) -> int:
    """Fill ``starts`` and ``sizes`` with the row's units; return their number."""
    units = 0
    for position in range(1, length):  # the first is [CLS]; where it is not, a masked position of 0 would mean none
        token = row[position]
        if is_special[token]:
            continue
        follows = units > 0 and starts[units - 1] + sizes[units - 1] == position
        if follows and is_continuation[token]:
            sizes[units - 1] += 1
        else:
            starts[units] = position
            sizes[units] = 1
            units += 1
    return units


@cached_njit()
def _choose(
    state: np.ndarray, starts: np.ndarray, sizes: np.ndarray, units: int, wanted: int, chosen: np.ndarray
) -> None:
    """Draw units without replacement until ``wanted`` tokens are chosen; a unit that does not fit is skipped."""
    count = 0
    for drawn in range(units):
        if count == wanted:
            return
        other = drawn + draw_below(state, units - drawn)
        start, size = starts[other], sizes[other]
        starts[other], sizes[other] = starts[drawn], sizes[drawn]
        if count + size <= wanted:
            for position in range(start, start + size):
                chosen[position] = True
            count += size
