"""LARS, LARC, Adam, AdamW and SGD against oracles in float64 numpy, and what all algorithms do alike."""

import copy
from functools import partial

import numpy as np
import pytest
import torch

from bert_pretrain.optim import LARS, SGD, Adam, AdamW, NVLamb
from bert_pretrain.optim.joined import joined_gradients
from tests.bert_pretrain.optim.algorithms import ELEMENTWISE, WITH_KERNELS
from tests.oracles import (
    assert_close,
    assert_continues_bitwise,
    assert_same,
    norm_of,
    relative,
    set_grads,
    snapshot,
)  # fmt: skip

# Error of the sum of the updates: with decay alone a layer changes by 1e-4 of itself per step, and torch's factor for
# that, 1 - lr decay in float32, has a relative error of 3e-4 in the 1e-4.
LONG_CHANGE = 1e-3


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_300_updates_agree_with_the_oracle(name):
    algorithm = ELEMENTWISE[name]
    weights, gradients = algorithm.problem()
    params, optimizer = algorithm.build(weights)
    oracle = algorithm.build_oracle(weights)
    for k in range(300):
        set_grads(params, gradients(k))
        optimizer.step()
        oracle.step(gradients(k))
    assert optimizer.grad_norm.item() == pytest.approx(norm_of(gradients(299)), rel=1e-6)
    assert_close(params, oracle, weights, 5e-5, LONG_CHANGE)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_float64_agrees_to_rounding(name):
    """Except for the learning rate and the clip, which torch's kernels read as float32 if they are tensors."""
    algorithm = ELEMENTWISE[name]
    weights, gradients = algorithm.problem(np.float64)
    params, optimizer = algorithm.build(weights, torch.float64)
    oracle = algorithm.build_oracle(weights)
    for k in range(30):
        set_grads(params, gradients(k))
        optimizer.step()
        oracle.step(gradients(k))
    assert_close(params, oracle, weights, 1e-7, 1e-6)


@pytest.mark.parametrize("scale", [None, 4096.0])
@pytest.mark.parametrize("name", WITH_KERNELS)
def test_skips_bit_for_bit_at_any_step_and_undoes_the_loss_scale(name, scale):
    algorithm = WITH_KERNELS[name]
    dtype = torch.float32 if name in ELEMENTWISE else torch.float64
    weights, gradients = algorithm.problem()
    params, optimizer = algorithm.build(weights, dtype)
    oracle = algorithm.build_oracle(weights)
    for k in range(12):
        for broken in (True, False) if k in (0, 5) else (False,):
            set_grads(params, [g * np.float32(scale or 1.0) for g in gradients(k)])
            if broken:
                params[-1].grad[7, 7] = float("inf")
            if scale is not None:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
            before = copy.deepcopy([params, [optimizer.state[p] for p in params]])
            optimizer.step()
            assert optimizer.skipped == float(broken)
            if broken:
                for param, kept, state in zip(params, *before, strict=True):
                    assert torch.equal(param, kept)
                    assert all(torch.equal(value, optimizer.state[param][key]) for key, value in state.items())
        oracle.step(gradients(k))
    if dtype == torch.float32:
        assert_close(params, oracle, weights, 2e-6, LONG_CHANGE)
    for param, expected in zip(params, oracle.w, strict=True):
        assert dtype == torch.float32 or relative(param.detach(), expected) < 1e-9


@pytest.mark.parametrize("name", ["lars", "larc"])
def test_lars_masks_a_skipped_step_on_the_device(name, monkeypatch):
    """On a GPU the host does not wait for the decision: the update runs, and changes nothing."""
    weights, gradients = ELEMENTWISE[name].problem()
    params, optimizer = ELEMENTWISE[name].build(weights)
    set_grads(params, gradients(0))
    optimizer.step()
    before = snapshot(params, optimizer)
    set_grads(params, gradients(1))
    params[7].grad[77] = float("nan")
    skip, factor = torch.tensor(True), torch.tensor(1.0, dtype=torch.float64)
    with torch.no_grad():
        for group, layers in optimizer._parts():
            optimizer._update(group, layers, joined_gradients(layers, factor, {}), skip)
    assert_same(before, snapshot(params, optimizer))


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_a_saved_state_and_a_deepcopy_continue_bitwise(name, tmp_path):
    weights, gradients = WITH_KERNELS[name].problem()
    params, optimizer = WITH_KERNELS[name].build(weights)
    for k in range(3):
        set_grads(params, gradients(k))
        optimizer.step()

    def give(params, k):
        set_grads(params, gradients(k))

    assert_continues_bitwise(params, optimizer, WITH_KERNELS[name].build, give, tmp_path / "state.pt")


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_the_rate_of_a_group_may_be_a_tensor(name):
    weights, gradients = WITH_KERNELS[name].problem()
    (by_float, first), (by_tensor, second) = (WITH_KERNELS[name].build(weights) for _ in range(2))
    for k in range(5):
        for params, optimizer in ((by_float, first), (by_tensor, second)):
            for group in optimizer.param_groups:
                rate = 0.01 * 0.5**k
                group["lr"] = rate if optimizer is first else torch.tensor(rate, dtype=torch.float64)
            set_grads(params, gradients(k))
            optimizer.step()
            if optimizer is second:
                assert all(group["lr"].dtype == torch.float64 for group in optimizer.param_groups)
    for a, b in zip(by_float, by_tensor, strict=True):
        assert relative(a.detach(), b.detach()) < 1e-7


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_under_grad_scaler(name):
    param = torch.ones(2, 5, requires_grad=True)
    optimizer = WITH_KERNELS[name].make([param], 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    slope = torch.linspace(-1, 1, 10).view(2, 5)  # on a sphere, an update along the weights moves nothing
    for k in range(4):
        before = param.detach().clone()
        scaler.scale((param * slope).sum() * (float("nan") if k == 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, param) == (k == 2)
        assert optimizer.skipped == float(k == 2)
        assert scaler.get_scale() == 2.0 ** (9 if k >= 2 else 10)


def test_gradients_are_not_written_without_scale_and_clip():
    for make in (AdamW, Adam, SGD, LARS):
        param = torch.ones(100, requires_grad=True)
        optimizer = make([param], 0.1)
        param.grad = torch.linspace(0, 1, 100)
        kept = param.grad.clone()
        optimizer.step()
        assert torch.equal(param.grad, kept)


@pytest.mark.parametrize("make", [NVLamb, LARS, AdamW, Adam, SGD])
def test_the_norm_may_include_parameters_of_other_ranks(make):
    """The optimizer updates its own parameters by the norm of all."""
    own, other = torch.ones(4, requires_grad=True), torch.ones(9, requires_grad=True)
    optimizer = make([own], 0.1)
    optimizer.norm_params = [own, other]
    own.grad, other.grad = torch.full((4,), 2.0), torch.full((9,), 1.0)
    optimizer.step()
    assert optimizer.grad_norm == 5.0
    assert torch.equal(other, torch.ones(9))
    other.grad[3] = float("nan")
    before = own.detach().clone()
    optimizer.step()
    assert optimizer.skipped == 1
    assert torch.equal(own, before)


def test_layer_report_of_lars():
    """By hand: ||w|| = 2, ||g|| = 4, decay 0.5: length 4 + 1; the second layer is zero; the third has no gradient."""
    layers = [torch.ones(4), torch.zeros(3), torch.ones(2)]
    layers = [layer.requires_grad_() for layer in layers]
    layers[0].grad, layers[1].grad = torch.full((4,), 2.0), torch.ones(3)
    for clip, ratio, plain in ((False, 0.01 * 2 / 5, 1.0), (True, 0.001, 0.001)):
        optimizer = LARS(layers, 0.001, weight_decay=0.5, trust_coefficient=0.01, clip=clip, eps=1e-12)
        optimizer.step()
        report = optimizer.layer_report()
        assert report[:, 2].isnan().all()
        assert report[0, :2].tolist() == pytest.approx([ratio, plain], rel=1e-6)
        assert report[2, 0].item() == pytest.approx(5.0, rel=1e-6)
        for layer in layers:
            layer.data.fill_(float(layer.numel() != 3))


def test_layer_report_of_nvlamb():
    """By hand: at t = 1 u is the sign of the gradient, so ||u|| = 3 for 9 elements; ||w|| = 6; r = 2."""
    for kernel in ("reference", "foreach", "fused"):
        layers = [torch.full((9,), 2.0, requires_grad=True), torch.ones(2, requires_grad=True)]
        optimizer = NVLamb(layers, 0.001, weight_decay=0.0, eps=1e-12, kernel=kernel)
        assert optimizer.layer_report().isnan().all()
        layers[0].grad = torch.linspace(-1, 1, 9) + 0.1
        optimizer.step()
        report = optimizer.layer_report()
        assert report.shape == (3, 2)
        assert report[:, 0].tolist() == pytest.approx([2.0, 6.0, 3.0], rel=1e-5)
        assert report[:, 1].isnan().all()


@pytest.mark.parametrize("make", [partial(AdamW, max_grad_norm=1.0), Adam, SGD])
def test_torch_s_foreach_is_the_fused_update_with_loss_scaling_too(make):
    """What the run goes on with if the fused kernel is wrong: a step, one that is skipped, and a third."""
    params = [[torch.linspace(-1, 1, 12).view(3, 4).requires_grad_(), torch.ones(5, requires_grad=True)] for _ in "ab"]
    both = [make(own, torch.tensor(0.1, dtype=torch.float64)) for own in params]
    both[1].kernel = "foreach"
    for step in range(3):
        for own, optimizer in zip(params, both, strict=True):
            for param in own:
                param.grad = 256.0 * torch.sin(param.detach() * (step + 1))
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(256.0), torch.tensor(float(step == 1))
            kept = [param.grad.clone() for param in own]
            optimizer.step()
        assert all(param.grad.equal(grad) for param, grad in zip(params[1], kept, strict=True))
        assert both[0].skipped.item() == both[1].skipped.item() == (step == 1)
        torch.testing.assert_close(params[1], params[0], rtol=1e-6, atol=1e-7)
    assert both[1].param_groups[0]["fused"]
    assert both[1].param_groups[0]["lr"].dtype == torch.float64
    states = [[own.get("step", torch.tensor(2.0)) for own in optimizer.state.values()] for optimizer in both]
    assert all(step.item() == 2 for steps in states for step in steps)
