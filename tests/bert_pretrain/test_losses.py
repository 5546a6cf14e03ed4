"""The fast cross entropy against torch's, and against numbers by hand."""

import math

import pytest
import torch

from bert_pretrain import losses


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)]
)
def test_fast_sums_are_torchs(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(50, 301)).to(dtype)
    logits[7] = 300 * logits[7]  # far apart: the exponentials of all but one vanish
    labels = torch.randint(0, 301, (50,))
    labels[[3, 9]] = -100
    labels[7] = logits[7].argmin()
    results = []
    for function in (losses.sums, losses.fast_sums):
        given = logits.clone().requires_grad_()
        loss, right = function(given, labels)
        (0.25 * loss).backward()
        assert given.grad.dtype == dtype
        results.append((loss.detach().double(), right, given.grad.double()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-6, atol=0)
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[1][2], results[0][2], rtol=0, atol=tolerance)
    assert (results[1][2][3] == 0).all()


@pytest.mark.parametrize("function", [losses.sums, losses.fast_sums])
def test_by_hand(function) -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [1.0, 5.0]], dtype=torch.float64, requires_grad=True)
    loss, right = function(logits, torch.tensor([1, 0, -100]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4 / 3) + math.log(2))
    assert right == 2
    expected = torch.tensor([[0.25, -0.25], [-0.5, 0.5], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("function", [losses.sums, losses.fast_sums])
def test_nothing_to_predict(function) -> None:
    logits = torch.randn(0, 5, requires_grad=True)
    loss, right = function(logits, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert (loss, right) == (0, 0)


@pytest.mark.parametrize("function", [losses.sums, losses.fast_sums])
def test_what_is_not_finite_stays_so(function) -> None:
    logits = torch.tensor([[0.0, float("nan")]], requires_grad=True)
    loss, _ = function(logits, torch.tensor([0]))
    loss.backward()
    assert loss.isnan()
    assert logits.grad.isnan().any()
