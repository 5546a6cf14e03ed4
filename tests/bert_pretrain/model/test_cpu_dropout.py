"""Dropout masks on CPU: their distribution and their independence."""

import math

import pytest
import torch

from bert_pretrain.model.cpu_dropout import dropout, noise

SHAPE = torch.Size((2000, 1000))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_share_and_value(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    drawn = noise(SHAPE, p, dtype)
    assert drawn.dtype == dtype
    assert sorted(drawn.unique().tolist()) == [0.0, torch.tensor(1 / (1 - p), dtype=dtype).item()]
    dropped = (drawn == 0).double()
    deviation = math.sqrt(p * (1 - p))
    assert abs(dropped.mean() - p) < 5 * deviation / math.sqrt(SHAPE.numel())
    for dim in (0, 1):  # the deviation of column and row means is that of independent draws
        assert dropped.mean(dim).std().item() == pytest.approx(deviation / math.sqrt(SHAPE[dim]), rel=0.15)


def test_neighbours_and_calls_are_uncorrelated() -> None:
    torch.manual_seed(0)
    first, second = (noise(torch.Size((1_000_000,)), 0.5, torch.float32) - 1 for _ in range(2))
    assert abs((first * second).mean()) < 5e-3
    for distance in (1, 2, 3, 7, 64, 128, 768, 1000, 65536):
        assert abs((first[:-distance] * first[distance:]).mean()) < 5e-3, distance
        assert abs((first[:-distance] * second[distance:]).mean()) < 5e-3, distance


def test_the_seed_determines_the_mask() -> None:
    torch.manual_seed(3)
    first = noise(SHAPE, 0.1, torch.float32)
    again = noise(SHAPE, 0.1, torch.float32)
    torch.manual_seed(3)
    assert torch.equal(first, noise(SHAPE, 0.1, torch.float32))
    assert not torch.equal(first, again)


def test_gradients_flow_through_the_kept_elements() -> None:
    x, residual = torch.ones(64, 64, requires_grad=True), torch.ones(64, 64, requires_grad=True)
    out = dropout(x, 0.25, residual)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach() - 1)
    assert torch.equal(residual.grad, torch.ones(64, 64))
    assert 0 < (x.grad == 0).sum() < x.numel()


def test_no_random_number_is_drawn_at_zero() -> None:
    torch.manual_seed(1)
    x = torch.randn(4)
    before = torch.get_rng_state()
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 0.0, x), 2 * x)
    assert torch.equal(before, torch.get_rng_state())
