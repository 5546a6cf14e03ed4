"""Norms against float64 numpy, at sizes at which float32 sums are inaccurate."""

import numpy as np
import pytest
import torch

from bert_pretrain.optim.norms import BLOCK, global_norm, layer_norms


def test_embedding_sized_norm_is_right_to_1e_7():
    generator = torch.Generator().manual_seed(0)
    big = torch.randn(30522, 768, generator=generator)
    small = torch.randn(768, generator=generator)
    exact = [np.linalg.norm(t.numpy().astype(np.float64).ravel()) for t in (big, small)]
    found = layer_norms([big, small])
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-7)
    assert global_norm([big, small]).item() == pytest.approx(np.hypot(*exact), rel=1e-7)


def test_odd_sizes_layouts_and_types():
    generator = torch.Generator().manual_seed(0)
    sizes = (0, 1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7)
    tensors = [torch.randn(size, generator=generator) for size in sizes]
    tensors += [torch.randn(300, 200, generator=generator).t(), torch.randn(90, 90, generator=generator)[:, ::2]]
    tensors += [torch.randn(9000, generator=generator).to(dtype) for dtype in (torch.bfloat16, torch.float16)]
    tensors += [torch.randn(size, generator=generator, dtype=torch.float64) for size in (5, 9000)]
    exact = [np.linalg.norm(t.double().numpy().ravel()) for t in tensors]
    np.testing.assert_allclose(layer_norms(tensors).numpy(), exact, rtol=1e-6)  # bf16 rows: 5e-7
    np.testing.assert_allclose(layer_norms(tensors[-2:]).numpy(), exact[-2:], rtol=1e-14)


def test_no_tensors_have_norm_zero():
    assert global_norm([]).item() == 0
    assert layer_norms([]).shape == (0,)


@pytest.mark.parametrize("size", [3, 3 * BLOCK + 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_not_hidden(size, value):
    tensor = torch.zeros(size)
    tensor[-1] = value
    assert not torch.isfinite(global_norm([tensor, torch.ones(2)]))


def test_float16_gradients_do_not_overflow_in_their_sum():
    assert global_norm([torch.full((10000,), 60000.0, dtype=torch.float16)]).item() == pytest.approx(6e6, rel=1e-3)
