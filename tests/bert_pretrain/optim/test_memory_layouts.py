"""Where parameters and gradients lie in memory: shared, repeated, strided, of other types and shapes."""

import numpy as np
import pytest
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import NVLamb
from bert_pretrain.optim.nvlamb_triton_plan import Plan
from tests.bert_pretrain.optim.single_layer import FAMILY, gradient, parameter

WHOLE = torch.zeros(40)

OVERLAPS = {
    "shifted": (WHOLE[:20], WHOLE[10:30]),
    "inside": (WHOLE[5:10], WHOLE[:20]),
    "another type": (WHOLE.view(torch.float64)[:4], WHOLE[6:10]),
    "columns": (WHOLE.view(5, 8)[:, :4], WHOLE.view(5, 8)[:, 3:]),
}


@pytest.mark.parametrize("views", OVERLAPS)
def test_parameters_that_overlap_are_refused(views):
    first, second = (view.detach().requires_grad_() for view in OVERLAPS[views])
    with pytest.raises(ConfigError, match="parameter 1 of group 0 shares its memory with parameter 0 of group 0"):
        NVLamb([first, second], 0.1)


def test_views_side_by_side_are_not_refused():
    table = torch.randn(5, 8)
    halves = [table[:, :4].detach().requires_grad_(), table[:, 4:].detach().requires_grad_()]
    rows = [torch.randn(6, 3)[i].requires_grad_() for i in range(6)]
    optimizer = NVLamb([*halves, *rows], 0.1)
    for param in (*halves, *rows):
        param.grad = torch.ones_like(param)
    optimizer.step()


def test_a_parameter_that_repeats_its_elements_is_refused():
    with pytest.raises(ConfigError, match="parameter 0 of group 0 has several elements at one address"):
        NVLamb([torch.zeros(1).expand(4).detach().requires_grad_()], 0.1)


@pytest.mark.parametrize("make", FAMILY)
def test_complex_and_sparse_parameters_are_refused_and_empty_ones_left_alone(make):
    with pytest.raises(ConfigError, match=r"dtype of parameter 0 of group 0 is torch\.complex64"):
        make([torch.zeros(2, dtype=torch.complex64, requires_grad=True)], 0.1)
    with pytest.raises(ConfigError, match=r"layout of parameter 0 of group 0 is torch\.sparse_coo"):
        make([torch.zeros(2).to_sparse().requires_grad_()], 0.1)
    empty, param = parameter(0, 3), parameter()
    optimizer = make([empty, param], 0.1)
    empty.grad, param.grad = torch.zeros(0, 3), gradient(param)
    optimizer.step()
    alone = parameter()
    expected = make([alone], 0.1)
    alone.grad = gradient(alone)
    expected.step()
    assert torch.equal(param, alone)


@pytest.mark.parametrize("make", FAMILY)
@pytest.mark.parametrize("layout", ["transposed gradient", "transposed weight", "expanded gradient"])
def test_layouts_of_weights_and_gradients_do_not_matter(make, layout):
    param, plain = parameter(), parameter()
    if layout == "transposed weight":
        param.data = param.data.t().contiguous().t()
    optimizer, expected = make([param], 0.1), make([plain], 0.1)
    for seed in range(3):
        plain.grad = gradient(plain, seed)
        if layout == "expanded gradient":
            plain.grad = plain.grad[:1].repeat(6, 1)
        param.grad = plain.grad.t().contiguous().t() if layout == "transposed gradient" else plain.grad.clone()
        if layout == "expanded gradient":
            param.grad = plain.grad[:1].expand(6, 4)
        optimizer.step()
        expected.step()
    torch.testing.assert_close(param, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no gradients of another type")
@pytest.mark.parametrize("make", FAMILY)
def test_gradients_of_another_type_than_the_weights(make):
    param, plain = parameter(), parameter()
    param.grad_dtype = torch.bfloat16
    optimizer, expected = make([param], 0.1), make([plain], 0.1)
    param.grad = gradient(param).bfloat16()
    plain.grad = param.grad.float()
    optimizer.step()
    expected.step()
    torch.testing.assert_close(param, plain, rtol=1e-6, atol=1e-7)
    assert param.grad.dtype == torch.bfloat16


def test_a_gradient_of_another_shape_is_refused_before_a_kernel_reads_it():
    param = parameter(8)
    optimizer = NVLamb([param], 0.1, kernel="fused")
    param.grad = torch.ones(8)
    param.data = torch.ones(16)
    with pytest.raises(ConfigError, match=r"gradient of parameter 0 is \(8,\) on cpu; allowed: \(16,\) on cpu"):
        optimizer.step()


def test_addresses_are_compared_as_integers_not_as_floats():
    """Where denormal numbers are flushed to zero, all addresses would be equal."""
    plan = Plan(None, [], np.zeros(0), np.zeros(0), [], *(torch.zeros(0) for _ in range(4)))
    first, second = (
        np.array([[at]], dtype=np.int64).view(np.float64) for at in (94_000_000_000_064, 94_000_000_000_128)
    )
    torch.set_flush_denormal(True)
    try:
        for content in (first, second, first):
            table = plan.table("groups", content, torch.device("cpu"))
            assert table.view(torch.int64).item() == content.view(np.int64).item()
    finally:
        torch.set_flush_denormal(False)
