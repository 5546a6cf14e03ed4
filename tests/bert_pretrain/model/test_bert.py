"""The project's forward pass against that of transformers on the same weights."""

from contextlib import nullcontext
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from bert_pretrain.data.collate import MicroBatch, to_micro_batch
from bert_pretrain.errors import ConfigError
from bert_pretrain.model.bert import PretrainingModel, build_model
from bert_pretrain.model.flops import parameter_count, training_flops
from bert_pretrain.model.options import ModelConfig, SpeedConfig
from tests.conftest import LENGTH, VOCAB_SIZE, random_arrays


def tiny(**changes: object) -> ModelConfig:
    values: dict = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": LENGTH,
        "vocab_size": VOCAB_SIZE,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
        "attention": "eager",
        "next_sentence": True,
    }
    return ModelConfig(**{**values, **changes})


SWITCHES = [field.name for field in fields(SpeedConfig)]
NONE = SpeedConfig(**dict.fromkeys(SWITCHES, False))
# The first two are tested in test_compile.py, the last in test_packing.py.
TECHNIQUES = [name for name in SWITCHES if name not in ("compile", "cuda_graphs", "packing")]
ALL = replace(NONE, **dict.fromkeys(TECHNIQUES, True))


def build(speed: SpeedConfig = ALL, **changes: object) -> PretrainingModel:
    return build_model(tiny(**changes), speed, 1, torch.device("cpu"))


def micro_batch(samples: int = 40) -> MicroBatch:
    return to_micro_batch(random_arrays(np.random.default_rng(3), samples))


def all_labels(batch: MicroBatch) -> torch.Tensor:
    """transformers' form: (B * L,) labels, -100 where nothing is predicted."""
    labels = torch.full_like(batch.input_ids, -100).flatten()
    predicted = batch.masked_labels >= 0
    assert not predicted.all(), "the micro-batch should have padding, to test that it has no effect"
    labels[batch.masked_positions[predicted]] = batch.masked_labels[predicted]
    return labels


def plain_losses(model: PretrainingModel, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses from transformers' own forward on all positions, with labels of -100 where nothing is predicted."""
    labels = all_labels(batch)
    out = model.bert(input_ids=batch.input_ids, attention_mask=batch.attention_mask, token_type_ids=batch.segment_ids)
    cross_entropy = torch.nn.functional.cross_entropy
    mlm = cross_entropy(out.prediction_logits.flatten(0, 1), labels, ignore_index=-100, reduction="sum")
    return mlm, cross_entropy(out.seq_relationship_logits, batch.next_sentence_labels, reduction="sum")


@pytest.mark.parametrize("technique", [*TECHNIQUES, "none", "all"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_losses_and_gradients_are_those_of_transformers(
    technique: str, attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    speed = {"none": NONE, "all": ALL}.get(technique) or replace(NONE, **{technique: True})
    assert_parity(build(speed, attention=attention).to(dtype), micro_batch(), tolerance)


def assert_parity(model: PretrainingModel, batch: MicroBatch, tolerance: float) -> None:
    """Both losses and every gradient are those of transformers' own forward on the same weights.

    With the weight cache and, if nothing is compiled, without.
    """
    mlm, nsp = plain_losses(model, batch)
    (mlm + nsp).backward()
    plain = {name: parameter.grad for name, parameter in model.named_parameters()}
    for context in (model.step,) if model.speed.compile else (model.step, nullcontext):
        model.zero_grad(set_to_none=True)
        with context():
            ours = model(*batch.tensors())
            (ours.mlm_loss + ours.nsp_loss).backward()
        torch.testing.assert_close(ours.mlm_loss, mlm, rtol=tolerance, atol=0)
        torch.testing.assert_close(ours.nsp_loss, nsp, rtol=tolerance, atol=0)
        for name, parameter in model.named_parameters():
            if (batch.masked_labels >= 0).any() and "key.bias" not in name:
                assert parameter.grad.norm() > 0
            scale = plain[name].abs().max().item()
            torch.testing.assert_close(parameter.grad, plain[name], rtol=0, atol=tolerance * max(scale, 1.0))
    model.zero_grad()


def test_the_mean_losses_are_transformers_loss() -> None:
    """transformers' labels argument gives mean + mean; our sums divided by their counts give the same number."""
    model = build().double()
    batch = micro_batch()
    labels = all_labels(batch)
    theirs = model.bert(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.segment_ids,
        labels=labels.view_as(batch.input_ids),
        next_sentence_label=batch.next_sentence_labels,
    ).loss
    ours = model(*batch.tensors())
    mean = ours.mlm_loss / (batch.masked_labels >= 0).sum() + ours.nsp_loss / len(batch.input_ids)
    torch.testing.assert_close(mean, theirs, rtol=1e-12, atol=0)


def test_accuracy_counts_match_argmax() -> None:
    model = build()
    batch = micro_batch(200)
    ours = model(*batch.tensors())
    out = model.bert(input_ids=batch.input_ids, attention_mask=batch.attention_mask, token_type_ids=batch.segment_ids)
    guesses = out.prediction_logits.flatten(0, 1)[batch.masked_positions].argmax(1)
    assert ours.mlm_correct == (guesses == batch.masked_labels).sum()
    assert ours.nsp_correct == (out.seq_relationship_logits.argmax(1) == batch.next_sentence_labels).sum()
    assert 0 < ours.nsp_correct < 200


def test_a_micro_batch_without_masked_tokens_has_no_mlm_loss_and_all_gradients() -> None:
    model = build()
    batch = micro_batch(4)
    empty = torch.empty(0, dtype=torch.long)
    out = model(batch.input_ids, batch.attention_mask, batch.segment_ids, empty, empty, batch.next_sentence_labels)
    assert out.mlm_loss == 0
    assert out.mlm_correct == 0
    (out.mlm_loss + out.nsp_loss).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_no_mask_means_a_mask_of_ones() -> None:
    model = build().double()
    batch = micro_batch(4)
    full = torch.ones_like(batch.input_ids)
    rest = (batch.segment_ids, batch.masked_positions, batch.masked_labels, batch.next_sentence_labels)
    without, with_ones = model(batch.input_ids, None, *rest), model(batch.input_ids, full, *rest)
    torch.testing.assert_close(without.mlm_loss, with_ones.mlm_loss, rtol=1e-12, atol=0)


def test_parameters_are_those_of_transformers_and_flops_those_counted_by_hand() -> None:
    config = tiny()
    model = build()
    assert parameter_count(config) == sum(parameter.numel() for parameter in model.parameters())
    # One sample of 10 tokens, 2 masked: 6*10*2*(4*256 + 2*16*32) + 12*2*16*100 + 6*2*(256 + 16*97) + 6*(256 + 32)
    assert training_flops(config, 1, 10, 100, 2) == 245_760 + 38_400 + 21_696 + 1_728


def test_base_and_large_flops_agree_with_the_published_table() -> None:
    """545.4 MFLOPs per token for BERT-base at 128, 1992.0 for BERT-large at 512; 15 % masked, without heads."""
    base = tiny(hidden_size=768, num_hidden_layers=12, intermediate_size=3072, vocab_size=30522)
    assert training_flops(base, 0, 1, 128, 0.15) == pytest.approx(545.4e6, rel=1e-3)
    large = tiny(hidden_size=1024, num_hidden_layers=24, intermediate_size=4096, vocab_size=30522)
    assert training_flops(large, 0, 1, 512, 0.15) == pytest.approx(1992.0e6, rel=1e-3)


@pytest.mark.parametrize(
    ("option", "value"),
    [("hidden_size", 0), ("num_attention_heads", 3), ("hidden_act", "swish"), ("hidden_dropout_prob", 1.0),
     ("attention", "flash"), ("vocab_size", -1)],
)  # fmt: skip
def test_bad_shapes_are_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"model\."):
        tiny(**{option: value})


@pytest.mark.parametrize("option", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
@pytest.mark.parametrize("technique", [*TECHNIQUES, "none", "all"])
def test_dropout_differs_between_micro_batches_and_follows_the_seed(option: str, technique: str) -> None:
    speed = {"none": NONE, "all": ALL}.get(technique) or replace(NONE, **{technique: True})
    model, batch = build(speed, **{option: 0.1}), micro_batch(8)
    losses = []
    for seed in (1, None, 1):
        if seed is not None:
            torch.manual_seed(seed)
        losses.append(model(*batch.tensors()).mlm_loss.item())
    assert losses[0] == losses[2] != losses[1]
    model.eval()
    assert model(*batch.tensors()).mlm_loss == build(speed).eval()(*batch.tensors()).mlm_loss


def test_dropout_in_the_forward_is_dropout_in_the_backward() -> None:
    """With a fixed seed, a directional derivative by finite differences agrees with the gradient."""
    model, batch = build(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).double(), micro_batch(8)

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        out = model(*batch.tensors())
        return out.mlm_loss + out.nsp_loss

    loss().backward()
    torch.manual_seed(0)
    steps = [torch.randn_like(parameter) for parameter in model.parameters()]
    slope = sum((step * parameter.grad).sum() for step, parameter in zip(steps, model.parameters(), strict=True))
    ends = []
    with torch.no_grad():
        for size in (1e-6, -2e-6):
            for step, parameter in zip(steps, model.parameters(), strict=True):
                parameter += size * step
            ends.append(loss())
    assert ((ends[0] - ends[1]) / 2e-6).item() == pytest.approx(slope.item(), rel=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("speed", [ALL, NONE], ids=["all", "none"])
def test_samples_cannot_see_each_other(speed: SpeedConfig, attention: str) -> None:
    """Other words, another length and another mask in one sample leave the others unchanged, bit for bit."""
    model, batch = build(replace(speed, last_layer_rows=False), attention=attention), micro_batch(6)
    changed = batch.input_ids.clone()
    changed[2] = changed[2].flip(0) + 1
    assert batch.attention_mask is not None
    mask = batch.attention_mask.clone()
    mask[2] = 1
    hidden = []
    heads = model.pieces.heads
    model.pieces = model.pieces._replace(
        heads=lambda cls, pooler, decoder, x, *rest: hidden.append(x) or heads(cls, pooler, decoder, x, *rest)
    )
    everywhere = torch.arange(batch.input_ids.numel())
    labels = torch.zeros_like(everywhere)
    for ids, seen in ((batch.input_ids, batch.attention_mask), (changed, mask)):
        model(ids, seen, batch.segment_ids, everywhere, labels, batch.next_sentence_labels)
    one, two = (x[6:].view(6, LENGTH, -1) for x in hidden)
    for sample in range(6):
        assert torch.equal(one[sample], two[sample]) == (sample != 2)


def test_attention_gets_no_mask_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mask, even of ones, torch cannot use its flash kernel."""
    model, arrays, masks = build(attention="sdpa"), random_arrays(np.random.default_rng(3), 4), []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(*qkv: torch.Tensor, attn_mask: torch.Tensor | None, dropout_p: float) -> torch.Tensor:
        masks.append(attn_mask)
        return original(*qkv, attn_mask=attn_mask, dropout_p=dropout_p)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model(*to_micro_batch(arrays).tensors())
    arrays["input_mask"][:] = 1
    model(*to_micro_batch(arrays).tensors())
    assert [mask is None for mask in masks] == [False, False, True, True]


def test_vocabulary_padding_is_only_in_the_product() -> None:
    """97 words are padded to 128 in the product; weights, gradients and files keep 97."""
    model, batch, widths = build(replace(NONE, pad_vocabulary=True)), micro_batch(), []
    original = torch.nn.functional.linear

    def watched(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        widths.append(len(weight))
        return original(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", watched)
        out = model(*batch.tensors())
    (out.mlm_loss + out.nsp_loss).backward()
    assert 128 in widths
    assert VOCAB_SIZE not in widths
    assert {
        len(p) for name, p in model.named_parameters() if "word_embeddings" in name or name.endswith("predictions.bias")
    } == {VOCAB_SIZE}
    assert all(p.grad.shape == p.shape for p in model.parameters())
    assert all(value.shape[0] != 128 for value in model.state_dict().values())


def test_the_last_layer_runs_on_the_rows_that_are_read() -> None:
    model, batch = build(), micro_batch(8)
    rows = []
    for layer in model.bert.bert.encoder.layer:
        act = layer.intermediate.intermediate_act_fn
        act.register_forward_hook(lambda module, given, out: rows.append(out.shape[:-1].numel()))
    model(*batch.tensors())
    assert rows == [batch.input_ids.numel(), 8 + len(batch.masked_positions)]
