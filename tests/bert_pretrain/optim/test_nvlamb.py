"""NVLamb against the oracle in float64 numpy, and the edge cases of its definition."""

import numpy as np
import pytest
import torch

from bert_pretrain.optim import NVLamb
from tests.oracles import (
    GROUPS,
    PRESETS,
    Oracle,
    assert_close,
    build,
    build_oracle,
    problem,
    relative,
    set_grads,
    snapshot,
)  # fmt: skip

KERNELS = ["reference", "foreach", "fused"]


@pytest.mark.parametrize("preset", PRESETS)
def test_100_updates_agree_with_the_oracle(preset, kernel):
    weights, gradients = problem()
    params, optimizer = build(weights, kernel, **PRESETS[preset])
    oracle = build_oracle(weights, **PRESETS[preset])
    for k in range(100):
        grads = gradients(k)
        if k == 40:  # a NaN gradient: the step is skipped
            grads[3] = grads[3].copy()
            grads[3][5, 5] = np.nan
            before = snapshot(params, optimizer)
        if k == 60:
            grads[4] = None
        set_grads(params, grads)
        optimizer.step()
        oracle.step(grads)
        assert optimizer.skipped.item() == float(k == 40)
        if k == 40:
            assert all(torch.equal(a, b) for a, b in zip(before, snapshot(params, optimizer), strict=True))
    assert_close(params, oracle, weights)
    assert [optimizer.state[p]["step"].item() for p in params] == oracle.t
    assert not optimizer.nonfinite_state


@pytest.mark.parametrize("kernel", ["reference", "foreach", "foreach_pieces", "foreach_masked"], indirect=True)
@pytest.mark.parametrize("preset", PRESETS)
def test_float64_agrees_to_rounding(preset, kernel):
    """The fused kernel refuses float64 (test_nvlamb_cpu.py)."""
    weights, gradients = problem(np.float64)
    params, optimizer = build(weights, kernel, torch.float64, **PRESETS[preset])
    oracle = build_oracle(weights, **PRESETS[preset])
    for k in range(30):
        set_grads(params, gradients(k))
        optimizer.step()
        oracle.step(gradients(k))
    assert_close(params, oracle, weights, 1e-13, 1e-12)
    assert optimizer.state[params[0]]["exp_avg"].dtype == torch.float64


def test_1000_updates_agree_with_the_oracle():
    """A long run, for errors that grow with t; the presets differ in other respects (see the test above)."""
    weights, gradients = problem()
    built, oracle = [build(weights, kernel) for kernel in KERNELS], build_oracle(weights)
    for k in range(1000):
        grads = gradients(k)
        for params, optimizer in built:
            set_grads(params, grads)
            optimizer.step()
        oracle.step(grads)
    for params, _ in built:
        assert_close(params, oracle, weights, 5e-5, 5e-5)


def test_1000_updates_of_bf16_weights_agree_with_the_oracle():
    """The masters keep what bf16 rounds away: an update of 1e-3 is less than half of bf16's last place."""
    weights, gradients = problem()
    weights = [torch.tensor(w).bfloat16().float().numpy() for w in weights]
    groups = [(lr / 10, decay, which) for lr, decay, which in GROUPS]
    built = [build(weights, kernel, torch.bfloat16, groups) for kernel in KERNELS]
    oracle = build_oracle(weights, groups)
    for k in range(1000):
        grads = gradients(k)
        for params, optimizer in built:
            set_grads(params, grads)
            rounded = [param.grad.double().numpy() for param in params]
            optimizer.step()
        oracle.step(rounded)
    for params, optimizer in built:
        for param, expected in zip(params, oracle.w, strict=True):
            assert relative(param.detach().double(), expected) < 1e-2
        assert_close([optimizer.state[p]["master"] for p in params], oracle, weights, 5e-5, 5e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_keep_float32_masters(dtype, kernel):
    weights, gradients = problem()
    params, optimizer = build(weights, kernel, dtype)
    start = [p.detach().double().numpy() for p in params]
    oracle = build_oracle(start)
    for k in range(100):
        set_grads(params, gradients(k))
        oracle.step([p.grad.double().numpy() for p in params])
        optimizer.step()
    masters = [optimizer.state[p]["master"] for p in params]
    assert_close(masters, oracle, start)
    for param, master in zip(params, masters, strict=True):
        assert master.dtype == torch.float32
        assert torch.equal(param.detach(), master.to(dtype))


def test_odd_shapes_and_layouts(kernel):
    """An embedding of BERT's length, a transposed weight, gradients and weights that are views of larger tensors."""
    rng = np.random.default_rng(0)
    shapes = [(30522, 16), (65, 33), (129, 3), (0, 4)]
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    bucket = torch.zeros(1 + weights[1].size)
    params = [torch.tensor(w) for w in weights]
    params[1] = bucket[1:].view(65, 33).copy_(params[1])  # not aligned
    if kernel != "fused":
        params[2] = params[2].t().contiguous().t()  # not contiguous
    params = [p.requires_grad_() for p in params]
    optimizer = NVLamb(params, 0.01, kernel=kernel)
    oracle = Oracle([(w, 0.01, 0.01) for w in weights])
    for _ in range(5):
        grads = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        for param, grad in zip(params, grads, strict=True):
            wide = torch.zeros(*grad.shape[:-1], 2 * grad.shape[-1])
            param.grad = wide[..., ::2].copy_(torch.tensor(grad))
        params[3].grad = torch.zeros(0, 4)
        optimizer.step()
        oracle.step(grads[:3])
    assert_close(params[:3], _first(oracle, 3), weights[:3])
    assert params[3] not in optimizer.state


def _first(oracle, count):
    oracle.w = oracle.w[:count]
    return oracle


def test_tied_embedding_is_one_layer(kernel):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(50, 8), "head": torch.nn.Linear(8, 50, bias=False)})
    model["head"].weight = model["embed"].weight
    start = model["embed"].weight.detach().double().numpy()
    optimizer = NVLamb(model.parameters(), 0.01, kernel=kernel)
    oracle = Oracle([(start, 0.01, 0.01)])
    ids = torch.arange(12)
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model["head"](model["embed"](ids)), ids).backward()
        oracle.step([model["embed"].weight.grad.double().numpy()])
        optimizer.step()
    assert_close([model["embed"].weight], oracle, [start])


def test_zero_gradient_moments_decay_and_only_decay_moves(kernel):
    """With m = 0, u = decay w and r u = w, so the layer shrinks by the factor 1 - lr."""
    w0 = np.linspace(-1, 1, 10, dtype=np.float32)
    param = torch.tensor(w0, requires_grad=True)
    optimizer = NVLamb([param], 0.1, kernel=kernel)
    param.grad = torch.zeros(10)
    optimizer.step()
    assert relative(param.detach(), 0.9 * w0) < 1e-6
    assert optimizer.grad_norm == 0
    assert optimizer.skipped == 0
    param.grad = torch.ones(10)
    optimizer.step()
    m, v = (optimizer.state[param][key].clone() for key in ("exp_avg", "exp_avg_sq"))
    param.grad = torch.zeros(10)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[param]["exp_avg"], 0.9 * m)
    torch.testing.assert_close(optimizer.state[param]["exp_avg_sq"], 0.999 * v)


def test_zero_weights_and_zero_update_have_ratio_one(kernel):
    zero, still = torch.zeros(4, requires_grad=True), torch.ones(4, requires_grad=True)
    optimizer = NVLamb([zero, still], 0.1, weight_decay=0.0, kernel=kernel)
    zero.grad, still.grad = torch.full((4,), 0.5), torch.zeros(4)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.full((4,), -0.1), rtol=1e-5, atol=0)
    assert torch.equal(still.detach(), torch.ones(4))


def test_pre_normalised_update_does_not_depend_on_the_scale_of_the_gradient(kernel):
    """Gradients times any power of two give bitwise the same weights."""
    results = []
    for scale in (1.0, 2.0**40, 2.0**-30):
        weights, gradients = problem()
        params, optimizer = build(weights, kernel)
        for k in range(5):
            set_grads(params, [np.float32(scale) * g for g in gradients(k)])
            optimizer.step()
        results.append(params)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bias_correction_cancels_in_the_trust_ratio(kernel):
    """Without decay, the step of a layer with trust ratio is lr ||w|| in both cases.

    Without trust ratio, the step without correction is (1-b1^t)/sqrt(1-b2^t) times as long.
    """
    for adapted, step_ratio in ((True, 1.0), (False, 3.1622776)):
        moved = []
        for corrected in (True, False):
            param = torch.full((100,), 2.0, requires_grad=True)
            trust = "all" if adapted else "decayed"
            optimizer = NVLamb(
                [param], 0.01, weight_decay=0.0, eps=1e-12, trust_ratio=trust, bias_correction=corrected, kernel=kernel
            )
            param.grad = torch.linspace(-1, 1, 100)
            optimizer.step()
            moved.append((param.detach() - 2.0).double().norm().item())
        assert moved[1] / moved[0] == pytest.approx(step_ratio, rel=1e-4)
        if adapted:
            assert moved[0] == pytest.approx(0.01 * 20.0, rel=1e-4)
