"""The state follows a model that is changed between steps: loaded weights, another type, another device."""

import pytest
import torch

from bert_pretrain.optim import NVLamb
from tests.bert_pretrain.optim.single_layer import FAMILY, KERNELS, gradient, parameter


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_follow_weights_that_are_loaded_into_the_model(kernel, dtype):
    model = torch.nn.Linear(4, 4, bias=False).to(dtype)
    optimizer = NVLamb(model.parameters(), 0.001, kernel=kernel)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    kept = optimizer.state[model.weight]["master"].clone()
    optimizer.step()
    assert not torch.equal(kept, kept.to(dtype).float())  # a master has more digits than the weight
    new = torch.full((4, 4), 3.0, dtype=dtype)
    new[0] = model.weight.detach()[0]
    before = optimizer.state[model.weight]["master"].clone()
    model.load_state_dict({"weight": new})
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    master = optimizer.state[model.weight]["master"]
    assert torch.equal(model.weight, new)
    assert torch.equal(master[1:], new[1:].float())
    assert torch.equal(master[0], before[0])  # unchanged weights keep their digits


def test_masters_loaded_after_the_weights_are_kept():
    param = parameter(dtype=torch.bfloat16)
    optimizer = NVLamb([param], 0.0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0]["master"] = torch.full((6, 4), 2.0)
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert (param == 2).all()


@pytest.mark.parametrize("make", FAMILY)
def test_a_model_whose_type_changes_keeps_its_moments(make):
    """float32 to float64 after a step: as float64 from the start, but for the rounding of one step."""
    param, plain = parameter(), parameter(dtype=torch.float64)
    optimizer, expected = make([param], 0.1), make([plain], 0.1)
    for seed, (own, run) in ((s, pair) for s in range(3) for pair in ((param, optimizer), (plain, expected))):
        own.grad = gradient(own, seed).to(own.dtype)
        run.step()
        if seed == 0:
            param.grad = None
            param.data = param.data.double()
    torch.testing.assert_close(param, plain, rtol=1e-5, atol=1e-6)
    states = [v for k, v in optimizer.state[param].items() if k != "step"]
    assert all(value.dtype == torch.float64 for value in states)


@pytest.mark.parametrize("make", FAMILY)
def test_state_and_results_left_on_another_device_are_not_used(make):
    """As after moving the model; here the other device is meta, which has no values."""
    param = parameter()
    optimizer = make([param], 0.1)
    optimizer.grad_norm, optimizer.skipped = optimizer.grad_norm.to("meta"), optimizer.skipped.to("meta")
    param.grad = gradient(param)
    optimizer.step()
    assert (optimizer.grad_norm.device.type, optimizer.skipped.device.type) == ("cpu", "cpu")
    assert optimizer.grad_norm.item() == pytest.approx(param.grad.norm().item(), rel=1e-6)
