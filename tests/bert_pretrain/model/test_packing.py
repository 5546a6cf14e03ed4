"""``speed.packing``: samples laid end to end give the losses and gradients of one sample a row."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_pretrain.data import loader
from bert_pretrain.data.collate import MicroBatch, Shape, dummy_batch, to_micro_batch, with_last
from bert_pretrain.data.dataset import concatenated
from bert_pretrain.data.packing import (
    fixed_packed_micro_batches,
    packed_micro_batches,
    packed_shapes,
    plan_micro_batches,
)
from bert_pretrain.model.bert import PretrainingModel
from tests.bert_pretrain.data.test_loader import samples_of, training_data
from tests.bert_pretrain.model.test_bert import ALL, NONE, TECHNIQUES, all_labels, build, plain_losses
from tests.bert_pretrain.training.test_trainer import rows, trainer_for
from tests.conftest import LENGTH, PREDICTIONS, random_arrays

SPEEDS = {"none": NONE, "all": ALL, **{name: replace(NONE, **{name: True}) for name in TECHNIQUES}}
SPEEDS = {name: replace(speed, packing=True) for name, speed in SPEEDS.items()}


def arrays_of_many_lengths(samples: int = 40) -> dict:
    """Half of the samples have 8 to 16 tokens, half 5 to 10."""
    rng = np.random.default_rng(3)
    short = random_arrays(rng, samples // 2, 10)
    for name in ("input_ids", "input_mask", "segment_ids"):
        short[name] = np.pad(short[name], ((0, 0), (0, LENGTH - 10)))
    return concatenated([random_arrays(rng, samples - samples // 2), short])


def packed(arrays: dict, samples: int) -> list[MicroBatch]:
    """Micro-batches with the tokens of up to ``samples`` full samples."""
    return list(fixed_packed_micro_batches(arrays, packed_shapes(samples, LENGTH, PREDICTIONS)))


def samples_of_packed(batches: list[MicroBatch]) -> list[tuple]:
    """Each sample as in ``samples_of``, read from where it begins to where the next does."""
    found = []
    for batch in batches:
        assert batch.attention_mask is None
        ids, segments, positions = (part.view(-1) for part in (batch.input_ids, batch.segment_ids, batch.position_ids))
        predicted = batch.masked_labels >= 0
        where, labels = batch.masked_positions[predicted].tolist(), batch.masked_labels[predicted].tolist()
        masks = dict(zip(where, labels, strict=True))
        bounds = batch.cu_seqlens.tolist()
        assert bounds[0] == 0
        assert bounds[-1] == ids.numel()
        for first, end, label in zip(bounds, bounds[1:], batch.next_sentence_labels.tolist(), strict=False):
            assert 0 <= end - first <= LENGTH
            if label < 0:
                assert not ids[first:].any(), "padding comes last"
                continue
            assert positions[first:end].tolist() == list(range(end - first))
            mine = tuple((p - first, masks.pop(p)) for p in range(first, end) if p in masks)
            found.append((tuple(ids[first:end].tolist()), tuple(segments[first:end].tolist()), mine, label))
        assert not masks
    return sorted(found)


def test_micro_batches_by_hand() -> None:
    """First-fit decreasing: 9, 7, 6, 4, 3, 1 in budgets of 20 tokens, 8 masked ones and 6 samples."""
    lengths, largest = np.array([4, 9, 3, 7, 1, 6]), Shape(2, 10, 8, False, 8)
    assert plan_micro_batches(lengths, np.ones(6, int), largest).tolist() == [0, 0, 1, 0, 1, 1]
    assert plan_micro_batches(lengths, np.full(6, 3), largest).tolist() == [1, 0, 2, 0, 2, 1]
    assert plan_micro_batches(lengths, np.ones(6, int), replace(largest, packed=4)).tolist() == [1, 0, 2, 0, 2, 1]


def test_where_samples_begin_by_hand() -> None:
    """12 and 7 tokens in 3 rows of 16: two samples, 29 tokens of padding in two pieces, and no more."""
    arrays = random_arrays(np.random.default_rng(0), 2)
    arrays["input_mask"][:] = np.arange(LENGTH) < np.array([[12], [7]])
    shape = Shape(3, LENGTH, 9, False, 12)
    (batch,) = fixed_packed_micro_batches(arrays, [shape])
    assert batch.cu_seqlens.tolist() == [0, 12, 19, 35, *[48] * 9]
    assert dummy_batch(shape).cu_seqlens.tolist() == [0, 16, 32, *[48] * 10]
    assert batch.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("samples", [1, 3, 40])
def test_shapes_are_few_and_hold_the_samples(samples: int) -> None:
    arrays, found = arrays_of_many_lengths(), packed(arrays_of_many_lengths(), samples)
    full = [(tuple(m), tuple(s), tuple(x), y) for m, s, x, y in samples_of_arrays(arrays)]
    assert samples_of_packed(found) == sorted(full)
    sizes = {(shape.samples, shape.masked, shape.packed) for shape in packed_shapes(samples, LENGTH, PREDICTIONS)}
    assert len(sizes) <= 8
    used = [(len(b.input_ids), len(b.masked_labels), len(b.next_sentence_labels)) for b in found]
    assert set(used) <= sizes
    assert all(len(b.cu_seqlens) == len(b.next_sentence_labels) + 1 for b in found)
    assert set(used[:-2]) <= {max(sizes)}, "all but the last are full"


def samples_of_arrays(arrays: dict) -> list[tuple]:
    """Each shard row as in ``samples_of``."""
    found = []
    for row, length in enumerate(arrays["input_mask"].sum(1)):
        positions, labels = arrays["masked_lm_positions"][row].tolist(), arrays["masked_lm_ids"][row].tolist()
        masks = [(p, label) for p, label in zip(positions, labels, strict=True) if p]
        ids, segments = (arrays[name][row, :length].tolist() for name in ("input_ids", "segment_ids"))
        found.append((ids, segments, masks, int(arrays["next_sentence_labels"][row])))
    return found


@pytest.mark.parametrize(("batch", "micro", "window"), [(40, 7, 10), (40, 7, 1000), (12, 1, 1000), (100, 100, 1000)])
def test_a_step_has_the_same_samples_in_no_more_micro_batches(
    shard_dir: Path, batch: int, micro: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_WINDOW", window)
    plain = training_data(shard_dir, batch, micro)
    data = replace(plain, packing=True)
    steps = data.steps(0)
    for step in range(3):
        found = list(data.micro_batches(step))
        assert samples_of_packed(found) == samples_of(plain, step)
        assert len(found) <= plain.plan.accumulation(0)
        assert max(len(one.input_ids) for one in found) <= micro
        prepared = next(steps)
        assert prepared.counts == data.counts(step) == plain.counts(step)
        marked = list(with_last(prepared.micro_batches))
        assert [last for _, last in marked] == [*[False] * (len(found) - 1), True]
        for (one, _), other in zip(marked, found, strict=True):
            assert torch.equal(one.input_ids, other.input_ids)
    steps.close()


def test_padding_shrinks_to_what_does_not_fit() -> None:
    """To 3 % and less; the masks, of which a short sample has as many as a long one, decide only in fixed shapes."""
    arrays = arrays_of_many_lengths(400)
    found = list(packed_micro_batches(arrays, 40))
    computed = sum(batch.input_ids.numel() for batch in found)
    assert 1 - arrays["input_mask"].sum() / computed < 0.03 < 0.35 < 1 - arrays["input_mask"].mean()
    assert samples_of_packed(found) == samples_of_packed(packed(arrays, 40))
    arrays["masked_lm_positions"][:, 1:] = 0
    assert 1 - arrays["input_mask"].sum() / sum(batch.input_ids.numel() for batch in packed(arrays, 40)) < 0.03


def losses(model: PretrainingModel, batches: Iterable[MicroBatch]) -> tuple[torch.Tensor, torch.Tensor]:
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
    for found, wanted in zip(losses(model, packed(arrays, 12)), expected, strict=True):
        assert found.item() == pytest.approx(wanted.item(), rel=1e-12, abs=0)
    for name, parameter in model.named_parameters():
        scale = max(plain[name].abs().max().item(), 1.0)
        torch.testing.assert_close(parameter.grad, plain[name], rtol=0, atol=1e-12 * scale)


def hidden_states(model: PretrainingModel, batch: MicroBatch, ids: torch.Tensor) -> torch.Tensor:
    """The last hidden states of all tokens of a packed micro-batch with other words, (B * L, H)."""
    places = torch.arange(ids.numel()), batch.cu_seqlens, batch.position_ids
    return model.hidden_states(ids, None, batch.segment_ids, *places)[-ids.numel() :]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("speed", ["all", "none"])
def test_samples_cannot_see_each_other(speed: str, attention: str) -> None:
    """Other words in one sample leave all others unchanged, bit for bit."""
    (batch,) = packed(arrays_of_many_lengths(8), 8)
    model = build(replace(SPEEDS[speed], last_layer_rows=False), attention=attention)
    first, end, last = batch.cu_seqlens[2], batch.cu_seqlens[3], batch.cu_seqlens[8]
    own = (torch.arange(batch.input_ids.numel()) >= first) & (torch.arange(batch.input_ids.numel()) < end)
    changed = torch.where(own.view_as(batch.input_ids), (batch.input_ids + 1) % 90, batch.input_ids)
    before, after = (hidden_states(model, batch, ids)[:last] for ids in (batch.input_ids, changed))
    own = own[:last]
    assert torch.equal(before[~own], after[~own])
    assert (before[own] != after[own]).any(1).all()


@pytest.mark.parametrize("technique", SPEEDS)
@pytest.mark.parametrize("option", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_differs_between_samples_and_follows_the_seed(technique: str, option: str) -> None:
    """Two equal samples: the same hidden states without dropout, others with it."""
    arrays = {name: np.repeat(values[-1:], 2, 0) for name, values in arrays_of_many_lengths(2).items()}
    (batch,) = packed(arrays, 2)
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
