"""NVLamb's state: saved and loaded, between kernels, with loss scaling, and not finite."""

import copy
import itertools

import numpy as np
import pytest
import torch

from bert_pretrain.optim import NVLamb, joined, nvlamb_foreach
from tests.oracles import build, problem, relative, set_grads, snapshot

KERNELS = ["reference", "foreach", "fused"]


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(KERNELS, 2)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_loads_with_any_kernel(first, second, dtype, tmp_path):
    weights, gradients = problem()
    params, optimizer = build(weights, first, dtype)
    straight_params, straight = build(weights, first, dtype)
    for k in range(20):
        if k == 10:
            torch.save({"optimizer": optimizer.state_dict(), "weights": params}, tmp_path / "state.pt")
            loaded = torch.load(tmp_path / "state.pt", weights_only=True)
            params, optimizer = build(weights, second, dtype)
            for param, saved in zip(params, loaded["weights"], strict=True):
                param.data.copy_(saved)
            optimizer.load_state_dict(loaded["optimizer"])
            for key in ("exp_avg", "exp_avg_sq", "step") + (("master",) if dtype == torch.bfloat16 else ()):
                assert optimizer.state[params[0]][key].dtype == torch.float32
                assert torch.equal(optimizer.state[params[0]][key], straight.state[straight_params[0]][key])
            assert optimizer.kernel == second
        for run, stepper in ((params, optimizer), (straight_params, straight)):
            set_grads(run, gradients(k))
            stepper.step()
    for a, b in zip(params, straight_params, strict=True):
        a, b = (optimizer.state[a]["master"], straight.state[b]["master"]) if dtype == torch.bfloat16 else (a, b)
        assert relative(a.detach(), b.detach().double().numpy()) < 1e-6


@pytest.mark.parametrize("kernel_name", KERNELS)
def test_resume_within_a_kernel_is_bitwise_and_shares_no_memory(kernel_name):
    weights, gradients = problem()
    params, optimizer = build(weights, kernel_name)
    for k in range(5):
        set_grads(params, gradients(k))
        optimizer.step()
    copies, resumed = build([p.detach().numpy().copy() for p in params], kernel_name)
    resumed.load_state_dict(optimizer.state_dict())
    for k in range(5, 10):
        for run, stepper in ((params, optimizer), (copies, resumed)):
            set_grads(run, gradients(k))
            stepper.step()
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


def test_learning_rate_as_a_tensor(kernel):
    weights, gradients = problem()
    (by_float, first), (by_tensor, second) = build(weights, kernel), build(weights, kernel)
    for k in range(5):
        for params, optimizer in ((by_float, first), (by_tensor, second)):
            for group in optimizer.param_groups:
                rate = 0.01 * 0.5**k
                group["lr"] = rate if optimizer is first else torch.tensor(rate, dtype=torch.float64)
            set_grads(params, gradients(k))
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(by_float, by_tensor, strict=True))


def test_loss_scale_is_undone_and_gradients_are_not_written(kernel):
    weights, gradients = problem()
    (plain, first), (scaled, second) = build(weights, kernel), build(weights, kernel)
    for k in range(5):
        set_grads(plain, gradients(k))
        first.step()
        set_grads(scaled, [np.float32(1024) * g for g in gradients(k)])
        kept = [p.grad.clone() for p in scaled]
        second.grad_scale, second.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
        second.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(scaled, kept, strict=True))
        assert second.grad_norm.item() == pytest.approx(first.grad_norm.item(), rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))
    before = snapshot(scaled, second)
    second.found_inf = torch.tensor(1.0)
    second.step()
    assert second.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(scaled, second), strict=True))


def test_under_grad_scaler(kernel):
    param = torch.ones(10, requires_grad=True)
    plain = torch.ones(10, requires_grad=True)
    optimizer, expected = NVLamb([param], 0.1, kernel=kernel), NVLamb([plain], 0.1, kernel=kernel)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    slope = torch.linspace(1, 2, 10)
    for k in range(6):
        loss = (param * slope).sum() * (float("inf") if k == 3 else 1.0)
        scaler.scale(loss).backward()
        before = snapshot([param], optimizer)
        if k == 4:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert optimizer.skipped == float(k == 3)
        assert scaler.get_scale() == 2.0 ** (9 if k >= 3 else 10)
        if k == 3:
            assert all(torch.equal(a, b) for a, b in zip(before, snapshot([param], optimizer), strict=True))
        else:
            plain.grad = slope.clone()
            expected.step()
    assert torch.equal(param, plain)


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_state_is_reported_and_stays_visible(key, value, kernel):
    param, other = torch.ones(5000, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = NVLamb([param, other], 0.1, kernel=kernel)
    param.grad, other.grad = torch.ones(5000), torch.ones(3)
    optimizer.step()
    assert not optimizer.nonfinite_state
    target = param.data if key == "weight" else optimizer.state[param][key]
    target[7] = value
    optimizer.step()
    assert optimizer.nonfinite_state
    assert optimizer.skipped == 0
    if np.isnan(value):
        assert param.isnan().all()  # a NaN norm gives a NaN ratio, never 1
    param.data.fill_(1.0)
    optimizer.state[param]["exp_avg"].zero_()
    optimizer.state[param]["exp_avg_sq"].zero_()
    optimizer.step()
    assert optimizer.nonfinite_state  # sticky


def test_gradient_none_everywhere_changes_nothing(kernel):
    weights, _ = problem()
    _, optimizer = build(weights, kernel)
    optimizer.step()
    assert optimizer.grad_norm == 0
    assert not optimizer.state


def test_deepcopy_keeps_the_options():
    _, optimizer = build(problem()[0], "reference", pre_normalization="none")
    other = copy.deepcopy(optimizer)
    assert (other.kernel, other.rules.pre_normalization, other.skipped) == ("reference", "none", 0)


def test_state_of_another_model_is_an_error():
    params, optimizer = build(problem()[0])
    set_grads(params, problem()[1](0))
    optimizer.step()
    _, stranger = build([np.ones(w.shape[::-1], dtype=np.float32) for w in problem()[0]])
    with pytest.raises(ValueError, match=r"shape of exp_avg of parameter \d+"):
        stranger.load_state_dict(optimizer.state_dict())


def test_small_layers_updated_at_once_are_those_updated_one_by_one(monkeypatch):
    """``foreach`` as on a device, where the scalars of a layer are numbers on the device; t differs between layers."""
    monkeypatch.setattr(nvlamb_foreach, "HOST_DECIDES", ())
    weights, gradients = problem()
    (together, first), (alone, second) = build(weights, "foreach"), build(weights, "foreach")
    for k in range(4):
        for params, optimizer, small in ((together, first, 1 << 14), (alone, second, 0)):
            monkeypatch.setattr(joined, "SMALL", small)
            set_grads(params, gradients(k))
            if k == 1:
                params[0].grad = None
            optimizer.step()
    assert any(key.startswith("owner") for key in first.workspace)
    assert not any(key.startswith("owner") for key in second.workspace)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert torch.equal(first.layer_report(), second.layer_report())
