"""kernel=apex: what is refused, and how the kernel is called, against a fake kernel written from its interface.

The fake proves the meaning of the arguments and the code around the kernel. Only the ``gpu`` test, which needs apex,
proves that NVIDIA's kernel does the same.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import NVLamb, nvlamb, nvlamb_apex
from tests.oracles import PRESETS as ALL_PRESETS
from tests.oracles import assert_close, build, build_oracle, problem, set_grads, snapshot

BOUNDS = {"lamb_phi", "lamb_ratio", "bounded_biases"}  # apex has none
PRESETS = {name: options for name, options in ALL_PRESETS.items() if name not in BOUNDS}


def multi_tensor_lamb(
    chunk, flag, lists, lr, beta1, beta2, eps, step, correct, decay, averaging, mode, norm, limit, everywhere
):
    """apex's kernel in numpy: betas are float32, the gradients are overwritten with the updates, NaN propagates."""
    assert isinstance(step, int)
    assert isinstance(lr, float)
    assert (flag.dtype, norm.dtype, mode) == (torch.int32, torch.float32, 1)
    beta1, beta2 = np.float64(np.float32(beta1)), np.float64(np.float32(beta2))
    bias1, bias2 = (1 - beta1**step, 1 - beta2**step) if correct else (1.0, 1.0)
    divisor = norm.item() / limit if norm.item() > limit else 1.0
    for tensors in zip(*lists, strict=True):
        assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in tensors)
        g, w, m, v = (tensor.double().numpy() for tensor in tensors)
        scaled = g / divisor
        m = beta1 * m + (1 - beta1 if averaging else 1.0) * scaled
        v = beta2 * v + (1 - beta2) * scaled * scaled
        u = (m / bias1) / (np.sqrt(v / bias2) + eps) + decay * w
        w_norm, u_norm = np.linalg.norm(w), np.linalg.norm(u)
        ratio = w_norm / u_norm if (everywhere or decay != 0) and w_norm != 0 and u_norm != 0 else 1.0
        for tensor, value in zip(tensors, (u, w - lr * ratio * u, m, v), strict=True):
            tensor.copy_(torch.from_numpy(value))


def applier(kernel, flag, lists, *rest):
    kernel(65536, flag, lists, *rest)


@pytest.fixture
def fake_apex(monkeypatch):
    monkeypatch.setitem(sys.modules, "amp_C", SimpleNamespace(multi_tensor_lamb=multi_tensor_lamb))
    monkeypatch.setitem(sys.modules, "apex.multi_tensor_apply", SimpleNamespace(multi_tensor_applier=applier))
    for module in (nvlamb, nvlamb_apex):
        monkeypatch.setattr(module, "check_apex", lambda *_: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", PRESETS)
def test_agrees_with_the_oracle_skips_and_leaves_gradients_alone(preset, dtype, fake_apex):
    """With a NaN gradient, which must skip the step, and a layer without gradient in one step: t differs afterwards."""
    weights, gradients = problem()
    params, optimizer = build(weights, "apex", dtype, **PRESETS[preset])
    start = [p.detach().double().numpy() for p in params]
    oracle = build_oracle(start, **PRESETS[preset])
    for k in range(60):
        grads = gradients(k)
        if k == 30:
            grads[3] = np.full_like(grads[3], np.nan)
            before = snapshot(params, optimizer)
        if k == 40:
            grads[4] = None
        set_grads(params, grads)
        kept = [None if p.grad is None else p.grad.clone() for p in params]
        oracle.step([None if p.grad is None else p.grad.double().numpy() for p in params])
        optimizer.step()
        assert optimizer.skipped == float(k == 30)
        if k == 30:
            assert all(torch.equal(a, b) for a, b in zip(before, snapshot(params, optimizer), strict=True))
        else:
            assert all(g is None or torch.equal(p.grad, g) for p, g in zip(params, kept, strict=True))
    held = [optimizer.state[p].get("master", p) for p in params]
    assert_close(held, oracle, start, 1e-5, 2e-4)
    assert [optimizer.state[p]["step"].item() for p in params] == oracle.t
    assert not optimizer.nonfinite_state


def test_state_moves_to_and_from_the_other_kernels_and_reports_agree(fake_apex):
    weights, gradients = problem()
    (params, optimizer), (others, reference) = build(weights, "apex"), build(weights, "reference")
    for k in range(10):
        for run, stepper in ((params, optimizer), (others, reference)):
            set_grads(run, gradients(k))
            stepper.step()
    torch.testing.assert_close(optimizer.layer_report(), reference.layer_report(), rtol=1e-4, atol=1e-6)
    state = optimizer.state_dict()
    assert state["state"].keys() == reference.state_dict()["state"].keys()
    reference.load_state_dict(state)
    optimizer.load_state_dict(reference.state_dict())


def test_loss_scale_is_undone(fake_apex):
    weights, gradients = problem()
    (plain, first), (scaled, second) = build(weights, "apex"), build(weights, "apex")
    set_grads(plain, gradients(0))
    first.step()
    set_grads(scaled, [np.float32(1024) * g for g in gradients(0)])
    second.grad_scale = torch.tensor(1024.0)
    second.step()
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))


def test_broken_moments_are_reported(fake_apex):
    param = torch.ones(10, requires_grad=True)
    optimizer = NVLamb([param], 0.1, kernel="apex")
    param.grad = torch.ones(10)
    optimizer.step()
    assert not optimizer.nonfinite_state
    optimizer.state[param]["exp_avg_sq"][3] = float("inf")
    optimizer.step()
    assert optimizer.nonfinite_state


@pytest.mark.parametrize(
    ("param", "options", "message"),
    [
        (torch.ones(2), {"phi_min": 0.1}, r"reference with phi_min, phi_max, ratio_min, ratio_max = \(0\.1, None"),
        (torch.ones(2), {"ratio_max": 9.0}, r"= \(None, None, None, 9\.0\)"),
        (torch.ones(2), {"phi_max": 10.0}, r"= \(None, 10\.0, None, None\)"),
        (torch.ones(2), {}, "parameter 0 is torch.float32 on cpu"),
        (torch.ones(2, device="meta"), {}, "on meta"),
        (torch.ones(2, dtype=torch.float64), {}, "torch.float64"),
    ],
)
def test_what_apex_does_not_support_is_refused(param, options, message):
    with pytest.raises(ConfigError, match=f"kernel is 'apex'; allowed: .*{message}"):
        NVLamb([param.requires_grad_()], 0.1, kernel="apex", **options)


@pytest.mark.skipif(nvlamb_apex.HAS_APEX, reason="apex is installed here")
def test_missing_apex_is_named_with_what_to_do():
    rules = NVLamb([torch.ones(2)], 0.1).rules
    with pytest.raises(ConfigError, match=r"kernel is 'apex', but apex .*\(amp_C\) is not installed; .*kernel=auto"):
        nvlamb_apex.check_apex(rules, [])


@pytest.mark.gpu
@pytest.mark.skipif(not nvlamb_apex.HAS_APEX or not torch.cuda.is_available(), reason="needs a CUDA device and apex")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", PRESETS)
def test_nvidias_kernel_agrees_with_the_oracle(preset, dtype):
    weights, gradients = problem()
    params = [torch.tensor(w).to(dtype).cuda().requires_grad_() for w in weights]
    optimizer = NVLamb(params, 0.01, kernel="apex", **PRESETS[preset])
    start = [p.detach().cpu().double().numpy() for p in params]
    oracle = build_oracle(start, [(0.01, 0.01, range(len(params)))], **PRESETS[preset])
    for k in range(60):
        grads = gradients(k)
        if k == 30:
            grads[3] = np.full_like(grads[3], np.nan)
        if k == 40:
            grads[4] = None
        for param, grad in zip(params, grads, strict=True):
            param.grad = None if grad is None else torch.tensor(grad).to(param)
        oracle.step([None if p.grad is None else p.grad.cpu().double().numpy() for p in params])
        optimizer.step()
    held = [optimizer.state[p].get("master", p).detach().cpu() for p in params]
    assert_close(held, oracle, start, 1e-5, 2e-4)
    assert [optimizer.state[p]["step"].item() for p in params] == oracle.t
