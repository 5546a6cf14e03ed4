"""NVLamb against an oracle in float64 numpy, written from the equations; it shares no code with the product."""

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bert_pretrain.optim import NVLamb, nvlamb_cpu, nvlamb_foreach
from tests.oracles import PRESETS, Oracle, assert_close, build, build_oracle, problem, relative, set_grads, snapshot

KERNELS = ["reference", "foreach", "fused"]


@pytest.fixture(params=["reference", "foreach", "foreach_pieces", "foreach_masked", "fused", "fused_pieces"])
def kernel(request, monkeypatch):
    """The kernels; also with large layers cut to pieces, and foreach as on a device that the host does not wait for."""
    if request.param == "fused_pieces":
        monkeypatch.setattr(nvlamb_cpu, "PIECE", 1000)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    if request.param == "foreach_pieces":
        monkeypatch.setattr(nvlamb_foreach, "CPU_RUN", 4096)
    if request.param == "foreach_masked":
        original = nvlamb_foreach._apply

        def masked(*args, host_decides):
            return original(*args, host_decides=False)

        monkeypatch.setattr(nvlamb_foreach, "_apply", masked)
    return request.param.partition("_")[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_100_updates_agree_with_the_oracle(preset, kernel):
    weights, gradients = problem()
    params, optimizer = build(weights, kernel, **PRESETS[preset])
    oracle = build_oracle(weights, **PRESETS[preset])
    for k in range(100):
        grads = gradients(k)
        if k == 40:  # a NaN in the middle: as if the step had not been
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


@pytest.mark.parametrize("preset", PRESETS)
def test_float64_agrees_to_rounding(preset, kernel):
    if kernel == "fused":
        kernel = "auto"  # which hands over what the fused kernel refuses
    weights, gradients = problem(np.float64)
    params, optimizer = build(weights, kernel, torch.float64, **PRESETS[preset])
    oracle = build_oracle(weights, **PRESETS[preset])
    for k in range(30):
        set_grads(params, gradients(k))
        optimizer.step()
        oracle.step(gradients(k))
    assert_close(params, oracle, weights, 1e-13, 1e-12)
    assert optimizer.state[params[0]]["exp_avg"].dtype == torch.float64


@pytest.mark.parametrize("kernel_name", KERNELS)
def test_1000_updates_agree_with_the_oracle(kernel_name):
    weights, gradients = problem()
    params, optimizer = build(weights, kernel_name)
    oracle = build_oracle(weights)
    for k in range(1000):
        grads = gradients(k)
        set_grads(params, grads)
        optimizer.step()
        oracle.step(grads)
    assert_close(params, oracle, weights, 1e-5, 5e-5)


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
    """An embedding of BERT's length, a transposed weight, gradients and weights that are views of something larger."""
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
    """With m = 0, u = decay w: r u = w, so that the layer shrinks by lr exactly."""
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


def test_pre_normalised_update_does_not_see_the_scale_of_the_gradient(kernel):
    """Unit norm: gradients times any power of two give bitwise the same weights; without it they do not."""
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
    """Undecayed and adapted, a layer moves by lr ||w|| with or without it; else (1-b1^t)/sqrt(1-b2^t) times."""
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


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(KERNELS, 2)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_moves_between_kernels_and_through_a_file(first, second, dtype, tmp_path):
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
        for who, by in ((params, optimizer), (straight_params, straight)):
            set_grads(who, gradients(k))
            by.step()
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
        for who, by in ((params, optimizer), (copies, resumed)):
            set_grads(who, gradients(k))
            by.step()
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


BAD_OPTIONS: list[tuple[str, object]] = [
    ("lr", -1.0),
    ("lr", float("nan")),
    ("lr", torch.ones(2)),
    ("betas", (1.0, 0.999)),
    ("betas", (0.9, -0.1)),
    ("betas", (0.9,)),
    ("eps", 0.0),
    ("eps", -1e-6),
    ("weight_decay", -0.01),
    ("pre_normalization", "both"),
    ("trust_ratio", "none"),
    ("kernel", "quick"),
    ("max_grad_norm", 0.0),
    ("phi_min", -1.0),
    ("phi_max", 0.0),
]


@pytest.mark.parametrize(("option", "value"), BAD_OPTIONS)
def test_bad_option_is_named(option, value):
    with pytest.raises(ValueError, match=rf"{option} is .*allowed: "):
        NVLamb([torch.ones(2, requires_grad=True)], **({"lr": 0.1} | {option: value}))


def test_bad_option_of_a_group_is_named():
    with pytest.raises(ValueError, match="lr is -1"):
        NVLamb([{"params": [torch.ones(2, requires_grad=True)], "lr": -1.0}], 0.1)
    with pytest.raises(ValueError, match="phi_min is 2"):
        NVLamb([torch.ones(2, requires_grad=True)], 0.1, phi_min=2.0, phi_max=1.0)


def _twice(make: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    first = torch.ones(6, requires_grad=True)
    return [first, torch.ones(2, requires_grad=True), make(first)]


@pytest.mark.parametrize("make", [lambda p: p, lambda p: p.detach().requires_grad_(), lambda p: p.detach()[:3]])
def test_parameter_that_appears_twice_is_an_error(make):
    with pytest.raises(ValueError, match="parameter 2 of group 0 shares its memory with parameter 0 of group 0"):
        NVLamb(_twice(make), 0.1)
    first, _, again = _twice(make)
    with pytest.raises(ValueError, match="parameter 0 of group 1 shares its memory with parameter 0 of group 0"):
        NVLamb([{"params": [first]}, {"params": (p for p in [again])}], 0.1)


def test_sparse_gradient_mixed_devices_and_integers_are_errors():
    table = torch.nn.Embedding(10, 2, sparse=True)
    optimizer = NVLamb(table.parameters(), 0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"gradient of parameter 0 is torch\.sparse_coo; allowed: dense"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"several devices .*parameter 0 of group 0 on cpu.*on meta"):
        NVLamb([torch.ones(1), torch.ones(1, device="meta")], 0.1)
    with pytest.raises(ValueError, match="dtype of parameter 0 of group 0"):
        NVLamb([torch.ones(2, dtype=torch.long)], 0.1)


def test_state_of_another_model_is_an_error():
    params, optimizer = build(problem()[0])
    set_grads(params, problem()[1](0))
    optimizer.step()
    _, stranger = build([np.ones(w.shape[::-1], dtype=np.float32) for w in problem()[0]])
    with pytest.raises(ValueError, match=r"shape of exp_avg of parameter \d+"):
        stranger.load_state_dict(optimizer.state_dict())
