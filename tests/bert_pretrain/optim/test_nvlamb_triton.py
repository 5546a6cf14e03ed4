"""The Triton kernels against the oracle: on the GPU if there is one, else in Triton's interpreter.

The interpreter runs programs one after the other: it proves the arithmetic and the addressing.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import NVLamb, nvlamb, nvlamb_triton
from bert_pretrain.optim.layers import Work
from tests.conftest import ROOT
from tests.oracles import (
    GROUPS,
    PRESETS,
    SHAPES,
    Oracle,
    assert_close,
    build,
    build_oracle,
    problem,
    relative,
    set_grads,
    snapshot,
)

pytest.importorskip("triton", reason="triton is not installed")
# The interpreter computes with numpy, which warns about inf and NaN; some tests need these.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
CUDA = torch.cuda.is_available()


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu) if CUDA else "cpu"])
def device(request):
    """The GPU if there is one: kernels are compiled there, and cannot run in the interpreter."""
    return request.param


@pytest.fixture(autouse=True)
def outcomes(monkeypatch):
    """Make kernel=fused run the Triton kernels, on CPU too; returns the outcomes of all steps."""
    done = []

    def step(work: Work):
        done.append(nvlamb_triton.fused_step(work))
        return done[-1]

    monkeypatch.setitem(nvlamb.KERNELS, "fused", step)
    return done


def numpy(tensor):
    return tensor.detach().double().cpu().numpy()


def assert_same(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("preset", PRESETS)
def test_updates_agree_with_the_oracle(preset, device):
    """Also with a NaN gradient, which must skip the step, and with a layer without gradient."""
    weights, gradients = problem()
    params, optimizer = build(weights, "fused", device=device, **PRESETS[preset])
    oracle = build_oracle(weights, **PRESETS[preset])
    for k in range(5):
        grads = gradients(k)
        if k == 2:
            grads[3] = grads[3].copy()
            grads[3][5, 5] = np.nan
            before = snapshot(params, optimizer)
        if k == 3:
            grads[4] = None
        set_grads(params, grads)
        optimizer.step()
        oracle.step(grads)
        assert optimizer.skipped.item() == float(k == 2)
        if k == 2:
            assert_same(before, snapshot(params, optimizer))
    assert_close(params, oracle, weights)
    assert [optimizer.state[p]["step"].item() for p in params] == oracle.t
    assert not optimizer.nonfinite_state


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_1000_updates_agree_with_the_oracle(dtype):
    weights, gradients = problem()
    params, optimizer = build(weights, "fused", dtype, device="cuda")
    start = [numpy(p) for p in params]
    oracle = build_oracle(start)
    for k in range(1000):
        set_grads(params, gradients(k))
        oracle.step([numpy(p.grad) for p in params])
        optimizer.step()
    assert_close([optimizer.state[p].get("master", p) for p in params], oracle, start, 1e-5, 5e-5)


def test_embedding_of_bert(device, monkeypatch):
    """30522 x 768, 23 million elements. The interpreter gets an eighth of it and larger blocks, because it is slow."""
    rows = 30522
    if device == "cpu":
        monkeypatch.setattr(nvlamb_triton, "BLOCK", 1 << 14)
        monkeypatch.setattr(nvlamb_triton, "CHUNK", 1 << 16)
        rows //= 8
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((rows, 768), dtype=np.float32), rng.standard_normal(768, dtype=np.float32)]
    grads = [rng.standard_normal(w.shape, dtype=np.float32) for w in weights]
    params, optimizer = build(weights, "fused", groups=[(0.01, 0.01, [0, 1])], device=device)
    oracle = Oracle([(w, 0.01, 0.01) for w in weights])
    set_grads(params, grads)
    optimizer.step()
    oracle.step(grads)
    assert_close(params, oracle, weights, 1e-7, 5e-6)
    assert optimizer.grad_norm.item() == pytest.approx(np.sqrt(sum((np.float64(g) ** 2).sum() for g in grads)), 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_that_are_not_aligned_and_gradients_that_are_not_contiguous(device, dtype):
    rng = np.random.default_rng(0)
    shapes = [(65, 33), (2500,), (129, 3), (0, 4), ()]
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    params = []
    for i, w in enumerate(weights):
        bucket = torch.zeros(i + w.size, dtype=dtype, device=device)
        params.append(bucket[i:].view(w.shape).copy_(torch.tensor(w)).requires_grad_())
    start = [numpy(p) for p in params]
    optimizer, oracle = NVLamb(params, 0.01, kernel="fused"), Oracle([(w, 0.01, 0.01) for w in start])
    for k in range(2):
        grads = []
        for i, param in enumerate(params):
            bucket = torch.tensor(rng.standard_normal(2 * param.numel() + k), device=device).to(dtype)
            view = bucket[k:].view(*param.shape[:-1], -1)[..., ::2] if i == 2 else bucket[k : k + param.numel()]
            param.grad = view.view(param.shape) if i != 2 else view
            grads.append(numpy(param.grad))
        optimizer.step()
        oracle.step(grads)
    assert not params[2].grad.is_contiguous()
    del params[3], start[3], oracle.w[3]
    assert_close([optimizer.state[p].get("master", p) for p in params], oracle, start)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_beside_float32_ones(dtype, device):
    """Two kinds of layers in one step: norms are those of all, in the order of the groups; masters are updated."""
    weights, gradients = problem()
    params, optimizer = build(weights, "fused", device=device)
    low = [i for i in range(len(SHAPES)) if i % 3 != 1]
    for i in low:
        params[i].data = params[i].data.to(dtype)
    start = [numpy(p) for p in params]
    oracle = build_oracle(start)
    for k in range(3):
        set_grads(params, gradients(k))
        oracle.step([numpy(p.grad) for p in params])
        optimizer.step()
    assert_close([optimizer.state[p].get("master", p) for p in params], oracle, start)
    for i in low:
        master = optimizer.state[params[i]]["master"]
        assert master.dtype == torch.float32
        assert torch.equal(params[i].detach(), master.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_copy_is_rounded_to_nearest_even(dtype, device):
    """Ties, overflow, subnormal numbers and NaN. A rate of 0 leaves the masters as they are."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 5000, dtype=np.uint32)
    bits[:1000] = bits[:1000] & 0xFFFF0000 | 0x8000  # halfway between two bf16
    bits[1000:2000] = bits[1000:2000] & 0xBFFFE000 | 0x30001000  # and, small enough, between two fp16
    param = torch.ones(5000, dtype=dtype, device=device, requires_grad=True)
    optimizer = NVLamb([param], 0.0, weight_decay=0.0, trust_ratio="decayed", kernel="fused")
    param.grad = torch.ones_like(param)
    optimizer.step()
    master = optimizer.state[param]["master"]
    master.copy_(torch.from_numpy(bits.view(np.float32)))
    optimizer.step()
    torch.testing.assert_close(param.detach(), master.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_norms_of_each_layer_are_reported(outcomes, device):
    weights, gradients = problem()
    params, optimizer = build(weights, "fused", device=device)
    oracle = build_oracle(weights)
    for k in range(2):
        set_grads(params, gradients(k))
        optimizer.step()
        oracle.step(gradients(k))
    expected = np.array([oracle.norms[i] for _, _, which in GROUPS for i in which])
    found = [outcomes[1].weight_norms, outcomes[1].update_norms]
    np.testing.assert_allclose(torch.stack(found, 1).cpu(), expected, rtol=1e-5)
    kept = [norms.clone() for norms in found]
    set_grads(params, [np.full_like(w, np.inf) for w in weights])
    optimizer.step()
    assert outcomes[2].weight_norms.abs().sum() + outcomes[2].update_norms.abs().sum() == 0
    assert_same(kept, found)  # returned tensors are not written again


def test_loss_scale_is_undone_and_gradients_are_not_written(device):
    weights, gradients = problem()
    (plain, first), (scaled, second) = (build(weights, "fused", device=device) for _ in range(2))
    for k in range(2):
        set_grads(plain, gradients(k))
        first.step()
        set_grads(scaled, [np.float32(1024) * g for g in gradients(k)])
        kept = [p.grad.clone() for p in scaled]
        second.grad_scale, second.found_inf = torch.tensor(1024.0, device=device), torch.tensor(0.0, device=device)
        second.step()
        assert_same([p.grad for p in scaled], kept)
        assert second.grad_norm.item() == pytest.approx(first.grad_norm.item(), rel=1e-6)
    assert_same(plain, scaled)
    before = snapshot(scaled, second)
    second.found_inf = torch.tensor(1.0, device=device)
    second.step()
    assert second.skipped == 1
    assert_same(before, snapshot(scaled, second))


def test_zero_gradients_zero_weights_and_none(device):
    zero, still, none = (torch.full((4,), x, device=device, requires_grad=True) for x in (0.0, 1.0, 1.0))
    optimizer = NVLamb([zero, still, none], 0.1, weight_decay=0.0, kernel="fused")
    zero.grad, still.grad = torch.full((4,), 0.5, device=device), torch.zeros(4, device=device)
    optimizer.step()
    np.testing.assert_allclose(numpy(zero), np.full(4, -0.1), rtol=1e-5)
    assert torch.equal(still.detach(), torch.ones_like(still))
    assert none not in optimizer.state
    param = torch.linspace(-1, 1, 10, device=device).requires_grad_()
    optimizer = NVLamb([param], 0.1, kernel="fused")
    param.grad = torch.zeros_like(param)
    optimizer.step()  # u = decay w: the layer shrinks by lr
    assert relative(param.detach().cpu(), 0.9 * np.linspace(-1, 1, 10)) < 1e-6
    assert optimizer.grad_norm == 0
    assert optimizer.skipped == 0


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_state_is_reported_and_stays_visible(key, value, device):
    param, other = (torch.ones(n, device=device, requires_grad=True) for n in (5000, 3))
    optimizer = NVLamb([param, other], 0.1, kernel="fused")
    param.grad, other.grad = torch.ones_like(param), torch.ones_like(other)
    optimizer.step()
    assert not optimizer.nonfinite_state
    target = param.data if key == "weight" else optimizer.state[param][key]
    target[7] = value
    optimizer.step()
    assert optimizer.nonfinite_state
    assert optimizer.skipped == 0
    assert torch.isfinite(other).all()
    if np.isnan(value):
        assert param.isnan().all()


def test_state_moves_between_kernels(device, tmp_path):
    weights, gradients = problem()
    dtype = torch.bfloat16
    kinds = (("fused", "fused"), ("foreach", "fused"), ("fused", "foreach"))
    runs = {kind: build(weights, kind[0], dtype, device=device) for kind in kinds}
    straight_params, straight = build(weights, "fused", dtype, device=device)
    for k in range(2):
        if k == 1:
            for kind, (params, optimizer) in runs.items():
                torch.save({"optimizer": optimizer.state_dict(), "weights": params}, tmp_path / "state.pt")
                loaded = torch.load(tmp_path / "state.pt", weights_only=True)
                runs[kind] = build(weights, kind[1], dtype, device=device)
                for param, saved in zip(runs[kind][0], loaded["weights"], strict=True):
                    param.data.copy_(saved)
                runs[kind][1].load_state_dict(loaded["optimizer"])
        for params, optimizer in (*runs.values(), (straight_params, straight)):
            set_grads(params, gradients(k))
            optimizer.step()
    for kind, (params, optimizer) in runs.items():
        for a, b in zip(params, straight_params, strict=True):
            found, expected = optimizer.state[a]["master"], straight.state[b]["master"]
            assert relative(found.cpu(), numpy(expected)) < 1e-6
            assert torch.equal(found, expected) or kind != ("fused", "fused")


def test_learning_rate_as_a_tensor(device):
    """On the device, changed in place there, and on the host: the same updates as with a float."""
    weights, gradients = problem()
    kinds = ["float", "new", "in place", *(["host"] if device == "cuda" else [])]
    runs = {kind: build(weights, "fused", device=device) for kind in kinds}
    for k in range(2):
        rate = torch.tensor(0.01 * 0.5**k, dtype=torch.float64)
        for kind, (params, optimizer) in runs.items():
            for group in optimizer.param_groups:
                if kind == "in place" and k == 1:
                    group["lr"].copy_(rate)
                else:
                    group["lr"] = (
                        rate.item() if kind == "float" else rate.to("cpu" if kind == "host" else device, copy=True)
                    )
            set_grads(params, gradients(k))
            optimizer.step()
    for params, _ in runs.values():
        assert_same(runs["float"][0], params)


def test_unsupported_layers_are_refused():
    transposed = torch.ones(4, 3).t().requires_grad_()
    for param in (transposed, torch.ones(3, dtype=torch.float64, requires_grad=True)):
        param.grad = torch.ones_like(param)
        with pytest.raises(ConfigError, match="kernel is 'fused'; allowed: foreach or auto"):
            NVLamb([param], 0.1, kernel="fused").step()
        assert not nvlamb_triton.supported(param)


def test_product_runs_with_torch_and_numpy_alone():
    """Without triton, numba and apex: kernel=auto steps with foreach, and kernel=fused names what is missing."""
    code = (
        "import sys\n"
        "for name in ('triton', 'numba', 'apex', 'amp_C', 'transformers', 'omegaconf', 'hydra', 'h5py'):\n"
        "    sys.modules[name] = None\n"
        "from bert_pretrain.optim import LARS, SGD, Adam, AdamW, NVLamb, nvlamb_triton; import torch\n"
        "p = torch.ones(3, requires_grad=True); p.grad = torch.ones(3)\n"
        "for kind in (LARS, SGD, Adam, AdamW, NVLamb): kind([p], 0.1).step()\n"
        "assert not nvlamb_triton.supported(p)\n"
        "for fail in (lambda: nvlamb_triton.fused_step(None), NVLamb([p], 0.1, kernel='fused').step):\n"
        "    try: fail()\n"
        "    except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "triton is not installed" in done.stdout
    assert "foreach or auto where numba is not installed" in done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_no_step_waits_for_the_device():
    weights, gradients = problem()
    params, optimizer = build(weights, "fused", torch.bfloat16, device="cuda")
    rates = torch.full((2,), 0.01, dtype=torch.float64, device="cuda")
    scale, found = torch.tensor(8.0, device="cuda"), torch.tensor(0.0, device="cuda")
    sets = [[torch.as_tensor(g).to("cuda", torch.bfloat16) for g in gradients(k)] for k in range(4)]
    for k, grads in enumerate(sets):
        torch.cuda.set_sync_debug_mode("error" if k else "default")  # the first step compiles
        try:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad  # at another address at every step
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5**k if k > 1 else 0.01
            optimizer.grad_scale, optimizer.found_inf = (scale, found) if k > 2 else (None, None)
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert optimizer.skipped == 0


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_the_same_bits_twice():
    """Ten steps on layers with many chunks: sums do not depend on the order in which programs finish."""
    results, sizes = [], (9_000_001, 1, 70_000)
    for _ in range(2):
        generator = torch.Generator("cuda").manual_seed(0)
        params = [torch.randn(n, generator=generator, device="cuda", requires_grad=True) for n in sizes]
        optimizer = NVLamb(params, 0.01, kernel="fused")
        for _ in range(10):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator, device="cuda")
            optimizer.step()
        results.append([*snapshot(params, optimizer), optimizer.grad_norm])
    assert_same(*results)


def test_the_norm_includes_layers_that_other_ranks_update(device):
    """||G|| = 5 from 4 elements here and 9 of another rank; a NaN of the other rank skips the step."""
    own = torch.ones(4, device=device).requires_grad_()
    other = torch.ones(9, device=device).requires_grad_()
    optimizer = NVLamb([own], 0.1, kernel="fused")
    optimizer.norm_params = [own, other]
    own.grad, other.grad = torch.full_like(own, 2.0), torch.full_like(other, 1.0)
    optimizer.grad_scale = torch.tensor(2.0, device=device)
    optimizer.step()
    assert optimizer.grad_norm.item() == 2.5
    assert torch.equal(other, torch.ones_like(other))
    other.grad[3] = float("nan")
    before = own.detach().clone()
    optimizer.step()
    assert optimizer.skipped.item() == 1
    assert torch.equal(own, before)
