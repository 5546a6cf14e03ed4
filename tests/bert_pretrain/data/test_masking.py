"""Masking against a slow implementation of the rule, and its statistics."""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_pretrain.data.dynamic_masking import dynamic_masking
from bert_pretrain.data.masking import mask_samples
from bert_pretrain.data.masking_rule import MaskingRule, restore_ids
from bert_pretrain.data.mixture import open_data_sets
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.shards import write_shard
from bert_pretrain.data.tokenizer_files import read_tokenizer
from bert_pretrain.errors import ConfigError
from tests.bert_pretrain.data.test_loader import config
from tests.conftest import HANGS, PREDICTIONS, VOCAB_SIZE, KeyedRandom, header, random_arrays
from tests.conftest import LENGTH as TOKENS

VOCAB, LENGTH, MOST = 300, 40, 6
SPECIAL = {0: "[PAD]", 1: "[UNK]", 2: "[CLS]", 3: "[SEP]", 4: "[MASK]"}
CONTINUATION = np.array([token % 3 == 0 and token > 4 for token in range(VOCAB)])


def test_splitmix64_gives_the_published_numbers() -> None:
    """The first outputs for seed 1234567, as in the reference implementation's test."""
    generator = KeyedRandom(0, 0, 0)
    generator.state = 1234567
    assert [generator.bits() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def make_rule(whole_word: bool = False, prob: float = 0.15, most: int = MOST) -> MaskingRule:
    return MaskingRule(prob, most, 4, VOCAB, np.array(list(SPECIAL)), CONTINUATION if whole_word else None)


def make_rows(samples: int, seed: int, dtype: type = np.uint16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, LENGTH + 1, samples)
    ids = rng.integers(5, VOCAB, (samples, LENGTH))
    ids[rng.random((samples, LENGTH)) < 0.03] = 1  # unknown words
    middle = rng.integers(2, lengths - 2)
    ids[:, 0] = 2
    ids[np.arange(samples), middle] = 3
    ids[np.arange(samples), lengths - 1] = 3
    ids[np.arange(LENGTH) >= lengths[:, None]] = 0
    return ids.astype(dtype), lengths


def plain_masking(
    row: list[int], length: int, rule: MaskingRule, generator: KeyedRandom
) -> tuple[list[int], list[int], list[int]]:
    """Google's rule on lists."""
    units: list[list[int]] = []
    for position in range(length):
        if row[position] in SPECIAL:
            continue
        continues = rule.is_continuation is not None and CONTINUATION[row[position]]
        if continues and units and units[-1][-1] == position - 1:
            units[-1].append(position)
        else:
            units.append([position])
    wanted = min(rule.max_predictions, max(1, round(length * rule.masked_lm_prob)))
    chosen: list[int] = []
    for drawn in range(len(units)):
        if len(chosen) == wanted:
            break
        other = drawn + generator.below(len(units) - drawn)
        units[drawn], units[other] = units[other], units[drawn]
        if len(chosen) + len(units[drawn]) <= wanted:
            chosen += units[drawn]
    masked, words = list(row), [token for token in range(VOCAB) if token not in SPECIAL]
    for position in sorted(chosen):
        dice = generator.unit()
        if dice < 0.8:
            masked[position] = 4
        elif dice >= 0.9:
            masked[position] = words[generator.below(len(words))]
    return masked, sorted(chosen), [row[position] for position in sorted(chosen)]


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("prob", [0.15, 0.5])
def test_equals_the_plain_implementation(whole_word: bool, prob: float) -> None:
    rule = make_rule(whole_word, prob)
    ids, lengths = make_rows(400, 1)
    indexes = np.arange(1000, 1400)
    masked, positions, labels = mask_samples(ids, lengths, rule, 77, 3, indexes)
    for row in range(len(ids)):
        generator = KeyedRandom(77, 3, int(indexes[row]))
        expected = plain_masking(ids[row].tolist(), int(lengths[row]), rule, generator)
        count = len(expected[1])
        assert masked[row].tolist() == expected[0]
        assert positions[row].tolist() == expected[1] + [0] * (MOST - count)
        assert labels[row].tolist() == expected[2] + [0] * (MOST - count)


def test_statistics() -> None:
    rule = make_rule()
    ids, lengths = make_rows(30_000, 2)
    masked, positions, labels = mask_samples(ids, lengths, rule, 1, 0, np.arange(len(ids)))
    predicted = positions > 0
    candidates = (~np.isin(ids, list(SPECIAL))).sum(1)
    wanted = np.minimum(np.minimum(MOST, np.maximum(1, np.rint(0.15 * lengths))), candidates)
    assert (predicted.sum(1) == wanted).all()
    replaced = np.take_along_axis(masked, positions, axis=1)[predicted]
    truth = labels[predicted]
    count = len(truth)
    is_mask, same = replaced == 4, replaced == truth
    drawn = replaced[~is_mask & ~same]
    assert abs(is_mask.mean() - 0.8) < 5 * (0.16 / count) ** 0.5
    assert abs(same.mean() - 0.1 - 0.1 / (VOCAB - 5)) < 5 * (0.09 / count) ** 0.5
    shares = np.bincount(drawn, minlength=VOCAB) / len(drawn)
    assert shares[:5].sum() == 0
    assert np.abs(shares[5:] - 1 / (VOCAB - 5)).max() < 6 * (1 / VOCAB / len(drawn)) ** 0.5
    assert not np.isin(truth, list(SPECIAL)).any()
    assert (positions < lengths[:, None]).all()
    full = np.flatnonzero(lengths == LENGTH)  # every inner position is equally likely
    frequency = np.bincount(positions[full][predicted[full]], minlength=LENGTH)[1:-1] / len(full)
    assert frequency.std() < 0.03


@pytest.mark.parametrize(("mask", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.3), (0.7, 0.3)])
def test_shares_of_mask_and_random_words(mask: float, random: float) -> None:
    """The same tokens are predicted whatever the shares; a share of 0 or 1 holds exactly."""
    ids, lengths = make_rows(10_000, 2)
    rule = dataclasses.replace(make_rule(), mask_share=mask, random_share=random)
    masked, positions, labels = mask_samples(ids, lengths, rule, 1, 0, np.arange(len(ids)))
    same_tokens = mask_samples(ids, lengths, make_rule(), 1, 0, np.arange(len(ids)))[1]
    assert (positions == same_tokens).all()
    predicted = positions > 0
    replaced, truth = np.take_along_axis(masked, positions, axis=1)[predicted], labels[predicted]
    is_mask, same = replaced == 4, replaced == truth
    if mask in (0.0, 1.0) and random in (0.0, 1.0):
        assert is_mask.all() == (mask == 1)
        assert is_mask.any() == (mask == 1)
        assert same.all() == (mask == random == 0)
    kept = 1 - mask - random + random / (VOCAB - 5)  # a random word may be the original
    for found, share in ((is_mask, mask), (same, kept)):
        assert abs(found.mean() - share) <= 5 * (share * (1 - share) / len(truth)) ** 0.5 + 1e-12


def test_shares_above_1_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mask_share is 0\.8 and random_share is 0\.3"):
        dataclasses.replace(make_rule(), random_share=0.3)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_restore_is_the_inverse_and_dtypes_agree(dtype: type) -> None:
    ids, lengths = make_rows(200, 3, dtype)
    before = ids.copy()
    masked, positions, labels = mask_samples(ids, lengths, make_rule(), 5, 0, np.arange(200))
    assert masked.dtype == labels.dtype == dtype
    assert (ids == before).all()
    assert (masked != ids).any()
    arrays = {"input_ids": masked, "masked_lm_positions": positions, "masked_lm_ids": labels}
    assert (restore_ids(arrays) == ids).all()
    reference, lengths = make_rows(200, 3, np.int64)
    assert (mask_samples(reference, lengths, make_rule(), 5, 0, np.arange(200))[0] == masked).all()


def test_masks_depend_on_the_key_only() -> None:
    ids, lengths = make_rows(100, 4)
    rule = make_rule()
    whole = mask_samples(ids, lengths, rule, 9, 2, np.arange(100))
    order = list(range(100))
    random.Random(0).shuffle(order)
    part = mask_samples(ids[order], lengths[order], rule, 9, 2, np.array(order))
    for all_rows, some in zip(whole, part, strict=True):
        assert (all_rows[order] == some).all()
    for seed, epoch, shift in ((8, 2, 0), (9, 3, 0), (9, 2, 1)):
        other = mask_samples(ids, lengths, rule, seed, epoch, np.arange(100) + shift)
        assert (other[1] != whole[1]).any(1).mean() > 0.9


def test_a_sample_whose_words_are_all_too_long_gets_no_mask() -> None:
    ids = np.array([[2, 5, 6, 9, 12, 3, 7, 9, 9, 9, 3]])
    _, positions, _ = mask_samples(ids, np.array([11]), make_rule(True, 0.2), 1, 0, np.array([0]))
    assert positions.sum() == 0


def test_a_word_ends_where_its_segment_ends() -> None:
    """A second segment that starts with a ## piece: its pieces are a word of their own."""
    ids = np.tile(np.array([2, 5, 3, 6, 9, 3]), (200, 1))
    _, positions, _ = mask_samples(ids, np.full(200, 6), make_rule(True, 0.34), 1, 0, np.arange(200))
    assert {tuple(row[row > 0].tolist()) for row in positions} == {(1,), (3, 4)}


def test_rule_of_a_vocabulary() -> None:
    tokens = ["[PAD]", "a", "##b", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "c"]
    rule = MaskingRule.of_vocabulary(tokens, 0.15, 3, whole_word=True)
    assert rule.mask_id == 6
    assert rule.words.tolist() == [1, 2, 7]
    assert rule.is_continuation is not None
    assert rule.is_continuation.tolist() == [False, False, True] + [False] * 5
    with pytest.raises(ConfigError, match=r"no \[MASK\]"):
        MaskingRule.of_vocabulary(tokens[:6], 0.15, 3, whole_word=False)
    with pytest.raises(ConfigError, match="all of them special"):
        MaskingRule.of_vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], 0.15, 3, whole_word=False)


def data_options(folder: Path, **changes: object) -> DataConfig:
    """Of shards in ``folder``, made here: 16 tokens, room for 3; every second word of the tokenizer is continued."""
    if not (folder / "vocab.txt").exists():
        tokens = [SPECIAL.get(number, f"{'##' * (number % 2)}w{number}") for number in range(VOCAB_SIZE)]
        (folder / "vocab.txt").write_text("\n".join(tokens))
        rule = header(vocab_hash=read_tokenizer(folder).vocab_hash)
        arrays = random_arrays(np.random.default_rng(1), 40)
        write_shard(folder / "train_00000.hdf5", arrays, rule)
    return config(folder, **{"tokenizer": str(folder), "masking": "dynamic", **changes})


def masks_of(options: DataConfig) -> tuple[dict | None, list[str]]:
    """The samples as a run masks them, None with static masks, and what it says."""
    said: list[str] = []
    shards = open_data_sets(options, "train", VOCAB_SIZE)
    assert shards is not None
    masking = dynamic_masking(options, shards, 5, said.append)
    return masking and masking(shards.read(0, 40), 0, np.arange(40)), said  # type: ignore[return-value]


def test_a_share_that_the_shards_have_no_room_for_is_told(tmp_path: Path) -> None:
    for share, wanted in ((0.25, 4), (0.15, 2), (None, 2), (0.21, 3)):  # rint(16 share), by hand
        masked, said = masks_of(data_options(tmp_path, masked_lm_prob=share))
        assert masked is not None
        assert (masked["masked_lm_positions"] > 0).sum(1).max() == min(wanted, PREDICTIONS)
        assert len(said) == (wanted > PREDICTIONS)
        for text in said:
            assert f"masked_lm_prob=0.25 asks for {wanted} of {TOKENS} tokens" in text
            assert f"room for {PREDICTIONS}" in text
            assert f"max_predictions=[{wanted}]" in text


def test_a_share_that_static_masks_overrule_is_told(tmp_path: Path) -> None:
    for share, told in ((0.3, 1), (0.15, 0), (None, 0)):
        masked, said = masks_of(data_options(tmp_path, masking="static", masked_lm_prob=share))
        assert (masked, len(said)) == (None, told)
        assert all("masked_lm_prob=0.3 has no effect" in text and "(0.15)" in text for text in said)


@pytest.mark.parametrize("whole_word", [False, True])
def test_whole_words_of_shards_of_single_pieces(tmp_path: Path, whole_word: bool) -> None:
    """Odd ids continue a word: one that is masked without its neighbour of the same word is a single piece."""
    masked, _ = masks_of(data_options(tmp_path, whole_word_masking=whole_word, masked_lm_prob=0.2))
    assert masked is not None
    before, torn = restore_ids(masked), 0
    for ids, places in zip(before.tolist(), masked["masked_lm_positions"].tolist(), strict=True):
        words = "".join("s" if token in SPECIAL else "c" if token % 2 else "b" for token in ids)
        chosen = "".join("x" if place in places else "-" for place in range(TOKENS))
        torn += sum(
            words[at] == "c" and words[at - 1] != "s" and chosen[at] != chosen[at - 1] for at in range(1, TOKENS)
        )
    assert (torn == 0) == whole_word, torn


def test_masking_and_shards_import_no_torch() -> None:
    code = "import sys, bert_pretrain.data.masking, bert_pretrain.data.shards, data_prep.prepare, data_prep.verify; "
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANGS)
