"""The fused vocabulary loss against torch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from bert_pretrain.model.cpu_vocabulary_loss import vocabulary_loss


def problem(rows: int, words: int, width: int, scale: float) -> list[torch.Tensor]:
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, width), torch.randn(words, width) * scale, torch.randn(words)
    labels = torch.randint(0, words, (rows,))
    labels[::5] = -100
    return [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), labels]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("rows", "words", "width", "scale"), [(1, 2, 1, 1.0), (7, 97, 16, 1.0), (100, 1001, 8, 30.0), (50, 640, 64, 1e-3)]
)
def test_values_and_gradients(rows: int, words: int, width: int, scale: float, threads: int, monkeypatch) -> None:
    """Also with logits that differ by 1e2, and with almost equal logits."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    *given, labels = problem(rows, words, width, scale)
    loss, correct = vocabulary_loss(*given, labels)
    (loss * 0.5).backward()
    precise = [tensor.detach().double().requires_grad_() for tensor in given]
    logits = F.linear(*precise)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    (expected * 0.5).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    assert correct == ((logits.argmax(1) == labels) & (labels >= 0)).sum()
    for found, wanted in zip(given, precise, strict=True):
        largest = wanted.grad.abs().max().item()
        tolerance = 2e-6 * max(1.0, scale)  # float32 rounds a logit of 1e2 by 1e-5, and its exponential accordingly
        torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=0, atol=tolerance * largest)


def test_without_labels_loss_and_gradients_are_zero() -> None:
    *given, labels = problem(6, 10, 4, 1.0)
    loss, correct = vocabulary_loss(*given, torch.full_like(labels, -100))
    loss.backward()
    assert loss == correct == 0
    assert all((tensor.grad == 0).all() for tensor in given)


def test_no_rows() -> None:
    *given, labels = problem(6, 10, 4, 1.0)
    loss, correct = vocabulary_loss(given[0][:0], *given[1:], labels[:0])
    loss.backward()
    assert loss == correct == 0
    assert all((tensor.grad == 0).all() for tensor in given)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_nan_and_inf_are_not_hidden(value: float, where: int) -> None:
    """The optimizer skips a step with such a gradient."""
    *given, labels = problem(6, 40, 4, 1.0)
    with torch.no_grad():
        given[where].view(-1)[5] = value  # in a row that has a label
    loss, _ = vocabulary_loss(*given, labels)
    loss.backward()
    assert not torch.isfinite(loss)
    assert not all(torch.isfinite(tensor.grad).all() for tensor in given)
