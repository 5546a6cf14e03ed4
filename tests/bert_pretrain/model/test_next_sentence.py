"""``model.next_sentence=false``: the model, its losses and its gradients are those of ``BertForMaskedLM``."""

import pytest
import torch
from transformers import BertForMaskedLM

from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.flops import parameter_count, training_flops
from bert_pretrain.model.options import SpeedConfig
from tests.bert_pretrain.model.test_bert import ALL, NONE, all_labels, build, micro_batch, tiny


def masked_words_only(speed: SpeedConfig = ALL, **changes: object) -> PretrainingModel:
    return build(speed, next_sentence=False, **changes)


@pytest.mark.parametrize("speed", [ALL, NONE], ids=["all", "none"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_loss_and_gradients_are_those_of_transformers(
    speed: SpeedConfig, attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    """transformers divides by the masked words itself."""
    model, batch = masked_words_only(speed, attention=attention).to(dtype), micro_batch()
    assert type(model.bert) is BertForMaskedLM
    labels = all_labels(batch).view_as(batch.input_ids)
    theirs = model.bert(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.segment_ids,
        labels=labels,
    ).loss
    theirs.backward()
    plain = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    with model.step():
        out = model(*batch.tensors())
        ours = out.mlm_loss / (labels >= 0).sum()
        ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)
    for name, parameter in model.named_parameters():  # none is unused
        if "key.bias" not in name:
            assert parameter.grad.norm() > 0, name
        scale = max(plain[name].abs().max().item(), 1.0)
        torch.testing.assert_close(parameter.grad, plain[name], rtol=0, atol=tolerance * scale)
    assert out.nsp_loss == out.nsp_correct == 0


@pytest.mark.parametrize("speed", [ALL, NONE], ids=["all", "none"])
def test_labels_are_not_read(speed: SpeedConfig) -> None:
    model, batch = masked_words_only(speed), micro_batch()
    with_labels, without = model(*batch.tensors()), model(*batch.tensors()[:-1], None)
    assert with_labels == without


def test_without_masked_words_every_gradient_is_zero() -> None:
    model, batch = masked_words_only(), micro_batch(4)
    empty = torch.empty(0, dtype=torch.long)
    out = model(batch.input_ids, batch.attention_mask, batch.segment_ids, empty, empty, batch.next_sentence_labels)
    (out.mlm_loss + out.nsp_loss).backward()
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in model.parameters())


def test_parameters_and_flops() -> None:
    config = tiny(next_sentence=False)
    assert parameter_count(config) == sum(parameter.numel() for parameter in masked_words_only().parameters())
    # One sample of 10 tokens, 2 masked, as in test_bert.py, without 6 * (256 + 32)
    assert training_flops(config, 1, 10, 100, 2) == 245_760 + 38_400 + 21_696
