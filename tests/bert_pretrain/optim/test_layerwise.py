"""Muon, AdamH and Schedule-Free AdamW: oracles in float64 numpy, and what each does alone; both kernels."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import LARS, AdamH, Muon, ScheduleFreeAdamW, joined
from bert_pretrain.optim.joined import Joined
from tests.bert_pretrain.optim.algorithms import ELEMENTWISE, LAYERWISE
from tests.oracles import assert_same, relative, set_grads, snapshot


@pytest.mark.parametrize("name", LAYERWISE)
def test_200_updates_agree_with_the_oracle(name):
    algorithm = LAYERWISE[name]
    weights, gradients = algorithm.problem(np.float64)
    oracle = algorithm.build_oracle(weights)
    kinds = (("reference", torch.float64), ("foreach", torch.float64), ("foreach", torch.float32))
    runs = {(kernel, dtype): algorithm.build(weights, dtype, kernel=kernel) for kernel, dtype in kinds}
    for k in range(200):
        for params, optimizer in runs.values():
            set_grads(params, gradients(k))
            optimizer.step()
        oracle.step(gradients(k))
    for (_, dtype), (params, _) in runs.items():
        for param, expected, start in zip(params, oracle.w, weights, strict=True):
            assert relative(param.detach(), expected) < (1e-6 if dtype == torch.float64 else 3e-5)
            moved = np.linalg.norm(expected - start) > 1e-12  # but for rounding: the layer without gradients
            if moved and dtype == torch.float64:
                assert relative(param.detach().numpy() - start, expected - start) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*LAYERWISE, "lars", "larc"])
def test_a_skipped_step_is_masked_on_the_device(name, dtype):
    """On a GPU the host does not wait for the decision: the update runs, and changes nothing."""
    algorithm = (LAYERWISE | ELEMENTWISE)[name]
    weights, gradients = algorithm.problem(np.float64)
    params, optimizer = algorithm.build(weights, dtype)
    for param in params:
        optimizer.state[param] = optimizer._new_state(param)
    for applied in (False, True):
        if applied:
            set_grads(params, gradients(0))
            optimizer.step()
        before = snapshot(params, optimizer)
        for group in optimizer.param_groups:
            layers, size = group["params"], sum(param.numel() for param in group["params"])
            grads = Joined.of(torch.full((size,), torch.nan, dtype=dtype), layers)
            states = [optimizer.state[param] for param in layers]
            with torch.no_grad():
                optimizer._update_all(group, layers, grads, states, torch.tensor(True))
        assert_same(before, snapshot(params, optimizer))


class Launches(TorchDispatchMode):
    """Counts operations that a GPU would launch a kernel for: those that write, and are no views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        lists = [arg for arg in args if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], torch.Tensor)]
        if "_foreach" in func.name() and len(lists) > 1:  # agree in shape, or torch launches a kernel a layer
            assert all(a.shape == b.shape for other in lists[1:] for a, b in zip(lists[0], other, strict=True))
        return func(*args, **(kwargs or {}))


def launches_of(make, layers, shape):
    params = [torch.ones(shape, requires_grad=True) for _ in range(layers)]
    optimizer = make(params, 0.1)
    for _ in range(2):  # the first makes the state
        for param in params:
            param.grad = torch.ones(shape)
        with Launches() as launches:
            optimizer.step()
    return launches.count


@pytest.mark.parametrize("make", [LARS, ScheduleFreeAdamW])
def test_small_layers_add_no_launches(make):
    assert launches_of(make, 3, (8, 4)) == launches_of(make, 30, (8, 4))


@pytest.mark.parametrize(("make", "each"), [(LARS, 1), (ScheduleFreeAdamW, 2), (AdamH, 4)])
def test_launches_for_a_large_layer(make, each, monkeypatch):
    """One for each number that is its own: LARS's rate; the correction of v and the average; also of m, and twice w."""
    monkeypatch.setattr(joined, "SMALL", 0)
    assert launches_of(make, 30, (8, 4)) - launches_of(make, 20, (8, 4)) == 10 * each


def test_muon_is_torchs_but_for_its_bfloat16():
    weights, gradients = LAYERWISE["muon"].problem()
    for scale in ("original", "match_rms_adamw"):
        ours, theirs = ([torch.tensor(w, requires_grad=True) for w in weights] for _ in range(2))
        optimizer = Muon(ours, 0.01, weight_decay=0.1, update_scale=scale)
        expected = torch.optim.Muon(theirs, 0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn=scale)
        for k in range(10):
            for params, stepper in ((ours, optimizer), (theirs, expected)):
                set_grads(params, gradients(k))
                stepper.step()
        for a, b, start in zip(ours, theirs, weights, strict=True):
            assert relative(a.detach().numpy() - start, b.detach().numpy() - start) < 0.02


def test_the_sphere_keeps_the_norm_and_the_report_has_the_step():
    w = torch.linspace(-1, 1, 40, dtype=torch.float64).view(5, 8)
    for make in (AdamH, partial(Muon, update_scale="hyperball")):
        for kernel in ("reference", "foreach"):
            param = w.clone().requires_grad_()
            optimizer = make([param], 0.1, kernel=kernel)
            param.grad = w.cos()
            optimizer.step()
            ratio, weight_norm, update_norm = optimizer.layer_report()[:, 0].tolist()
            assert param.norm().item() == pytest.approx(w.norm().item(), rel=1e-12)
            assert weight_norm == pytest.approx(w.norm().item(), rel=1e-12)
            assert ratio * update_norm == pytest.approx(weight_norm, rel=1e-12)


def test_schedule_free_evaluates_the_average():
    algorithm = LAYERWISE["schedule_free"]
    weights, gradients = algorithm.problem(np.float64)
    params, optimizer = algorithm.build(weights, torch.float64)
    oracle = algorithm.build_oracle(weights)
    with optimizer.evaluation_weights():  # before the first update
        assert all(np.array_equal(p.detach().numpy(), w) for p, w in zip(params, weights, strict=True))
    for k in range(20):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * min(1, (k + 1) / 5)
        oracle.lr = [0.01 * min(1, (k + 1) / 5)] * 4
        set_grads(params, gradients(k))
        optimizer.step()
        oracle.step(gradients(k))
    trained = [p.detach().clone() for p in params]
    with optimizer.evaluation_weights():
        for param, expected in zip(params, oracle.x, strict=True):
            assert relative(param.detach(), expected) < 1e-9
        assert not torch.equal(params[0], trained[0])
    assert all(torch.equal(p, kept) for p, kept in zip(params, trained, strict=True))


def test_what_is_refused():
    vector, matrix = torch.ones(3, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    for make in (Muon, AdamH):
        with pytest.raises(ConfigError, match=r"shape of parameter 0 is \(3,\); allowed: that of a matrix"):
            make([vector], 0.1)
        optimizer = make([matrix], 0.1)
        with pytest.raises(ConfigError, match="matrix"):
            optimizer.add_param_group({"params": [vector]})
        assert len(optimizer.param_groups) == 1
    for make in (AdamH, partial(Muon, update_scale="hyperball")):
        with pytest.raises(ConfigError, match=r"weight_decay is 0.1; allowed: 0: the norm"):
            make([matrix], 0.1, weight_decay=0.1)
    with pytest.raises(ConfigError, match="update_scale is 'twice'; allowed: match_rms_adamw"):
        Muon([matrix], 0.1, update_scale="twice")
    with pytest.raises(ConfigError, match="kernel is 'fused'; allowed: reference"):
        Muon([matrix], 0.1, kernel="fused")
    with pytest.raises(ConfigError, match="max_grad_norm is not set"):
        ScheduleFreeAdamW([matrix], 0.1, pre_normalization="clip")
    state = Muon([matrix], 0.1)
    matrix.grad = torch.ones(3, 2)
    state.step()
    with pytest.raises(ConfigError, match="the state of parameter 0 has momentum_buffer; allowed: radius"):
        Muon([matrix], 0.1, update_scale="hyperball").load_state_dict(state.state_dict())
