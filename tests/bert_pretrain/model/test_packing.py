"""``speed.packing``: rows of several samples give the losses and gradients of one sample a row."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_pretrain.data import loader
from bert_pretrain.data.collate import MicroBatch, to_micro_batch
from bert_pretrain.data.dataset import concatenated
from bert_pretrain.data.packing import packed_micro_batches, packed_shapes, plan_rows
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.options import SpeedConfig
from tests.bert_pretrain.data.test_loader import samples_of, training_data
from tests.bert_pretrain.model.test_bert import ALL, NONE, TECHNIQUES, all_labels, build, plain_losses
from tests.bert_pretrain.training.test_trainer import rows, trainer_for
from tests.conftest import LENGTH, random_arrays

SPEEDS = {"none": NONE, "all": ALL, **{name: replace(NONE, **{name: True}) for name in TECHNIQUES}}


def arrays_of_many_lengths(samples: int = 40) -> dict:
    """Half of the samples have 8 to 16 tokens, half 5 to 10."""
    rng = np.random.default_rng(3)
    short = random_arrays(rng, samples // 2, 10)
    for name in ("input_ids", "input_mask", "segment_ids"):
        short[name] = np.pad(short[name], ((0, 0), (0, LENGTH - 10)))
    return concatenated([random_arrays(rng, samples - samples // 2), short])


def samples_of_packed(batches: list[MicroBatch]) -> list[tuple]:
    """Each sample as in ``samples_of``, read by its number in the mask of its row."""
    found = []
    for batch in batches:
        numbers, predicted = batch.attention_mask, batch.masked_labels >= 0
        positions, labels = batch.masked_positions[predicted].tolist(), batch.masked_labels[predicted].tolist()
        masks = dict(zip(positions, labels, strict=True))
        pairs = zip(batch.first_positions.tolist(), batch.next_sentence_labels.tolist(), strict=True)
        kept = {first: label for first, label in pairs if label >= 0}
        assert len(kept) == len({(first // LENGTH, int(numbers.view(-1)[first])) for first in kept})
        for first, label in kept.items():
            row, place = divmod(first, LENGTH)
            own = numbers[row] == numbers[row, place]
            count = int(own.sum())
            assert batch.position_ids[row][own].tolist() == list(range(count))
            mine = tuple((p - first, masks.pop(p)) for p in range(first, first + count) if p in masks)
            ids, segments = (tuple(values[row][own].tolist()) for values in (batch.input_ids, batch.segment_ids))
            found.append((ids, segments, mine, label))
        assert not masks
    return sorted(found)


def test_rows_by_hand() -> None:
    """First-fit decreasing: 9, 7, 6, 4, 3, 1 in rows of 10."""
    rows, starts = plan_rows(np.array([4, 9, 3, 7, 1, 6]), np.ones(6, int), 10, 3)
    assert rows.tolist() == [2, 0, 1, 1, 0, 2]
    assert starts.tolist() == [6, 0, 7, 0, 9, 0]


def test_rows_hold_every_sample_once_and_none_overlaps() -> None:
    lengths = np.random.default_rng(1).integers(3, 129, 1000)
    rows, starts = plan_rows(lengths, np.maximum(1, np.rint(0.15 * lengths)).astype(int), 128, 19)
    taken = np.zeros((rows.max() + 1, 128), int)
    for row, start, length in zip(rows, starts, lengths, strict=True):
        assert start + length <= 128
        taken[row, start : start + length] += 1
    assert taken.max() == 1
    assert 1 - taken.mean() < 0.02


@pytest.mark.parametrize("predictions", [1, 3])
def test_a_row_has_no_more_samples_and_masks_than_stated(predictions: int) -> None:
    """600 samples of 3 tokens, of which 5 fit a row of 16: at most 4, and at most 2 + ``predictions`` masked tokens."""
    rows, _ = plan_rows(np.full(600, 3), np.full(600, predictions), LENGTH, predictions)
    assert (np.bincount(rows) == {1: 3, 3: 1}[predictions]).all()


@pytest.mark.parametrize("samples", [1, 3, 40])
def test_fixed_shapes_hold_the_same_samples(samples: int) -> None:
    arrays, shapes = arrays_of_many_lengths(), packed_shapes(-(-40 // samples), LENGTH, 3)
    found = list(packed_micro_batches(arrays, samples, shapes))
    assert samples_of_packed(found) == samples_of_packed(list(packed_micro_batches(arrays, 1)))
    sizes = {(shape.samples, shape.masked, shape.packed) for shape in shapes}
    assert {(len(b.input_ids), len(b.masked_labels), len(b.first_positions)) for b in found} <= sizes


@pytest.mark.parametrize(("batch", "micro", "window"), [(40, 7, 10), (40, 7, 1000), (12, 1, 1000), (100, 100, 1000)])
def test_a_step_has_the_same_samples_and_micro_batches(
    shard_dir: Path, batch: int, micro: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_WINDOW", window)
    plain = training_data(shard_dir, batch, micro)
    packed = replace(plain, packing=True)
    for step in range(3):
        found = list(packed.micro_batches(step))
        assert samples_of_packed(found) == samples_of(plain, step)
        assert len(found) == plain.plan.accumulation(0)
        assert max(len(one.input_ids) for one in found) <= micro
        assert packed.counts(step) == plain.counts(step)


def test_padding_shrinks_to_what_does_not_fit() -> None:
    arrays = arrays_of_many_lengths(400)
    shapes = [batch.input_ids.shape for batch in packed_micro_batches(arrays, 10)]
    assert max(shapes)[0] - min(shapes)[0] <= 1
    real = arrays["input_mask"].sum()
    assert 1 - real / sum(a * b for a, b in shapes) < 0.1 < 0.35 < 1 - arrays["input_mask"].mean()


def losses(model: PretrainingModel, batches: Iterator[MicroBatch]) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums over all micro-batches, after their backward passes."""
    sums = torch.zeros(2, dtype=torch.float64)
    with model.step():
        for batch in batches:
            out = model(*batch.tensors())
            (out.mlm_loss + out.nsp_loss).backward()
            sums += torch.stack([out.mlm_loss.detach(), out.nsp_loss.detach()])
    return sums[0], sums[1]


@pytest.mark.parametrize("technique", SPEEDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("next_sentence", [True, False])
def test_losses_and_gradients_are_those_of_transformers_without_packing(
    technique: str, attention: str, next_sentence: bool
) -> None:
    arrays = arrays_of_many_lengths()
    model = build(SPEEDS[technique], attention=attention, next_sentence=next_sentence).double()
    unpacked = to_micro_batch(arrays)
    if next_sentence:
        expected = plain_losses(model, unpacked)
    else:
        labels = all_labels(unpacked).view_as(unpacked.input_ids)
        inputs = {"attention_mask": unpacked.attention_mask, "token_type_ids": unpacked.segment_ids}
        mean = model.bert(input_ids=unpacked.input_ids, labels=labels, **inputs).loss
        expected = mean * (labels >= 0).sum(), torch.zeros(())
    sum(expected).backward()
    plain = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    for found, wanted in zip(losses(model, packed_micro_batches(arrays, 3)), expected, strict=True):
        assert found.item() == pytest.approx(wanted.item(), rel=1e-12, abs=0)
    for name, parameter in model.named_parameters():
        scale = max(plain[name].abs().max().item(), 1.0)
        torch.testing.assert_close(parameter.grad, plain[name], rtol=0, atol=1e-12 * scale)


def hidden_states(model: PretrainingModel, batch: MicroBatch, ids: torch.Tensor) -> torch.Tensor:
    """The last hidden states of all tokens of a packed micro-batch with other words, (B * L, H)."""
    found = []
    heads = model.pieces.heads
    model.pieces = model.pieces._replace(
        heads=lambda cls, pooler, decoder, x, *rest: found.append(x) or heads(cls, pooler, decoder, x, *rest)
    )
    everywhere = torch.arange(ids.numel())
    labels = torch.zeros_like(everywhere), batch.next_sentence_labels
    model(ids, batch.attention_mask, batch.segment_ids, everywhere, *labels, batch.first_positions, batch.position_ids)
    model.pieces = model.pieces._replace(heads=heads)
    return found[0][-ids.numel() :]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("speed", [ALL, NONE], ids=["all", "none"])
def test_samples_of_a_row_cannot_see_each_other(speed: SpeedConfig, attention: str) -> None:
    """Other words in one sample leave all others unchanged, bit for bit."""
    (batch,) = packed_micro_batches(arrays_of_many_lengths(8), 1)
    model, number = build(replace(speed, last_layer_rows=False), attention=attention), int(batch.attention_mask.max())
    (row,) = (batch.attention_mask == number).any(1).nonzero()[0]
    own = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    own[row] = batch.attention_mask[row] == number
    others = (batch.attention_mask > 0) & ~own
    assert others[row].any()
    changed = torch.where(own, (batch.input_ids + 1) % 90, batch.input_ids)
    before, after = (hidden_states(model, batch, ids) for ids in (batch.input_ids, changed))
    assert torch.equal(before[others.view(-1)], after[others.view(-1)])
    assert (before[own.view(-1)] != after[own.view(-1)]).any(1).all()


@pytest.mark.parametrize("technique", SPEEDS)
@pytest.mark.parametrize("option", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_differs_between_samples_of_a_row_and_follows_the_seed(technique: str, option: str) -> None:
    """Two equal samples in a row: the same hidden states without dropout, others with it."""
    arrays = {name: np.repeat(values[-1:], 2, 0) for name, values in arrays_of_many_lengths(2).items()}
    (batch,) = packed_micro_batches(arrays, 1)
    assert len(batch.input_ids) == 1
    length = int(arrays["input_mask"][0].sum())
    speed = replace(SPEEDS[technique], last_layer_rows=False)
    for model, differ in ((build(speed, **{option: 0.3}), True), (build(speed), False)):
        torch.manual_seed(1)
        one = hidden_states(model, batch, batch.input_ids)
        torch.manual_seed(1)
        again = hidden_states(model, batch, batch.input_ids)
        assert torch.equal(one, again)
        assert torch.allclose(one[:length], one[length : 2 * length], atol=1e-5) != differ


@pytest.mark.parametrize("next_sentence", ["true", "false"])
def test_a_packed_run_takes_the_same_steps(tmp_path: Path, shard_dir: Path, next_sentence: str) -> None:
    """Three micro-batches a step, and evaluations; dropout is off."""
    found = []
    for packing in ("true", "false"):
        options = f"speed.packing={packing}", f"model.next_sentence={next_sentence}", "precision.compute=fp32"
        trainer_for(tmp_path / packing, shard_dir, *options).run()
        found.append(rows(tmp_path / packing))
    for packed, plain in zip(*found, strict=True):
        assert packed.keys() == plain.keys()
        for key in ("loss", "mlm_loss", "nsp_loss", "grad_norm", "samples_seen", "eval_loss"):
            if key in plain:  # from step to step, rounding grows
                assert packed[key] == pytest.approx(plain[key], rel=1e-5 if plain["step"] == 1 else 1e-3)
