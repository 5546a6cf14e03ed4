"""The optimizers in the loops of others: compiled, in inference mode, with odd rates, layouts and gradients."""

import sys

import numpy as np
import pytest
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import LARS, SGD, Adam, AdamW, NVLamb, nvlamb_cpu, usable
from bert_pretrain.optim.build import build_optimizer, describe_optimizer
from bert_pretrain.optim.nvlamb_triton_plan import Plan
from bert_pretrain.optim.options import OptimizerConfig

FAMILY = [NVLamb, LARS, AdamW, Adam, SGD]
KERNELS = ["reference", "foreach", "fused", "auto"]


def parameter(*shape, dtype=torch.float32):
    return torch.nn.Parameter(torch.randn(*(shape or (6, 4)), generator=torch.Generator().manual_seed(0)).to(dtype))


def gradient(param, seed=1):
    return torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))


def updated(make, rate=0.1, wrap=lambda step: step, **options):
    """A parameter after three steps."""
    param = parameter()
    optimizer = make([param], rate, **options)
    step = wrap(optimizer.step)
    for seed in range(3):
        param.grad = gradient(param, seed)
        step()
    return param.detach()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_compiled_step_is_the_eager_one(kernel):
    torch._dynamo.reset()
    found = updated(NVLamb, kernel=kernel, wrap=lambda step: torch.compile(step, backend="eager"))
    assert torch.equal(found, updated(NVLamb, kernel=kernel))


@pytest.mark.parametrize("make", FAMILY)
def test_a_compiled_training_step(make):
    torch._dynamo.reset()
    model, plain = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    plain.load_state_dict(model.state_dict())
    optimizer, expected = make(model.parameters(), 0.1), make(plain.parameters(), 0.1)

    def train(network, run, x):
        network(x).square().mean().backward()
        run.step()
        run.zero_grad()

    for seed in range(2):
        x = gradient(torch.empty(3, 4), seed)
        torch.compile(train, backend="eager")(model, optimizer, x)
        train(plain, expected, x)
    torch.testing.assert_close(model.weight, plain.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", FAMILY)
def test_state_made_in_inference_mode_can_be_used_outside(make):
    param = parameter()
    optimizer = make([param], 0.1)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.inference_mode():
        assert optimizer.step(closure) > 0
    before = param.detach().clone()
    optimizer.step(closure)
    assert not torch.equal(param, before)
    assert not any(value.is_inference() for value in optimizer.state[param].values())


RATES = [torch.tensor(0.1), torch.tensor([0.1]), torch.tensor([[0.1]]), torch.tensor([[0.1]], dtype=torch.float64)]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("make", "options"), [(NVLamb, {"kernel": k}) for k in KERNELS] + [(m, {}) for m in FAMILY])
def test_a_rate_may_have_one_element_in_any_shape(make, options, rate):
    torch.testing.assert_close(updated(make, rate, **options), updated(make, **options), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", FAMILY)
def test_a_rate_of_zero_leaves_the_weights_and_a_bad_rate_is_refused_at_the_step(make):
    assert torch.equal(updated(make, 0.0), parameter())
    param = parameter()
    optimizer = make([param], 0.1)
    param.grad = gradient(param)
    for key, value in (("lr", -1.0), ("lr", float("nan")), ("weight_decay", -0.1), ("lr", torch.ones(2))):
        kept = optimizer.param_groups[0][key]
        optimizer.param_groups[0][key] = value
        with pytest.raises(ConfigError, match=f"{key} is "):
            optimizer.step()
        optimizer.param_groups[0][key] = kept
    assert torch.equal(param, parameter())


@pytest.mark.parametrize("make", FAMILY)
def test_the_results_of_a_step_without_gradients_are_its_own(make):
    param, other = parameter(), parameter(3)
    optimizer = make([param, other], 0.1)
    param.grad = torch.full_like(param, float("inf"))
    optimizer.step()
    assert (optimizer.skipped, optimizer.grad_norm) == (1, float("inf"))
    optimizer.zero_grad()
    optimizer.step()
    assert (optimizer.skipped, optimizer.grad_norm) == (0, 0)
    other.grad = torch.full_like(other, 2.0)
    optimizer.step()
    assert optimizer.skipped == 0
    assert optimizer.grad_norm.item() == pytest.approx(12**0.5)
    assert torch.equal(param, parameter())


@pytest.mark.parametrize("eps", [1e-50, 1e-44, 1e-37])
@pytest.mark.parametrize("make", [NVLamb, AdamW, Adam])
def test_an_eps_that_vanishes_in_float32_is_refused(make, eps):
    with pytest.raises(ConfigError, match=rf"eps is {eps}; allowed: at least 3\.7e-37"):
        make([parameter()], 0.1, eps=eps)
    make([parameter(dtype=torch.float64)], 0.1, eps=eps)


def test_the_smallest_eps_keeps_elements_without_gradient():
    for kernel in KERNELS:
        param = parameter()
        optimizer = NVLamb([param], 0.1, eps=4e-37, weight_decay=0.0, kernel=kernel)
        param.grad = torch.zeros(6, 4)
        param.grad[0, 0] = 1.0
        optimizer.step()
        assert param.isfinite().all()


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


def test_auto_names_the_kernel_that_runs():
    assert NVLamb([parameter()], 0.1).running_kernel == "fused"
    assert NVLamb([parameter(dtype=torch.bfloat16)], 0.1).running_kernel == "fused"
    assert NVLamb([parameter(dtype=torch.float64)], 0.1).running_kernel == "foreach"
    assert NVLamb([parameter(6, 4).detach().t().requires_grad_()], 0.1).running_kernel == "foreach"
    assert NVLamb([parameter()], 0.1, kernel="reference").running_kernel == "reference"
    options = {"betas": [0.9, 0.999], "eps": 1e-6, "pre_normalization": "unit", "trust_ratio": "all"}
    config = OptimizerConfig("nvlamb", 0.01, lr=0.1, **options, bias_correction=True, kernel="auto")
    assert "kernel auto: fused" in describe_optimizer(build_optimizer(torch.nn.Linear(2, 2), config), config)


@pytest.fixture
def broken_numba(monkeypatch):
    """An installed numba that cannot be imported, as with a numpy it does not know."""
    monkeypatch.setitem(sys.modules, nvlamb_cpu._LOOPS, None)
    for cached in (usable.import_error, usable.warn_of_fallback):
        cached.cache_clear()
    yield
    for cached in (usable.import_error, usable.warn_of_fallback):
        cached.cache_clear()


def test_auto_does_without_a_broken_compiler_and_says_so(broken_numba):
    param = parameter()
    optimizer = NVLamb([param], 0.1)
    param.grad = gradient(param)
    with pytest.warns(
        UserWarning, match=r"numba is installed but cannot be used \(ModuleNotFoundError: .*auto is foreach"
    ):
        optimizer.step()
    assert optimizer.running_kernel == "foreach"
    fused = NVLamb([param], 0.1, kernel="fused")
    with pytest.raises(ConfigError, match="kernel is 'fused' and numba is installed but cannot be used"):
        fused.step()


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


@pytest.mark.parametrize("make", FAMILY)
def test_scales_of_one_element_in_any_shape(make):
    param, plain = parameter(), parameter()
    optimizer, expected = make([param], 0.1), make([plain], 0.1)
    param.grad, plain.grad = gradient(param) * 4, gradient(plain)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor([4.0]), torch.tensor([0.0])
    optimizer.step()
    expected.step()
    torch.testing.assert_close(param, plain, rtol=1e-6, atol=1e-7)
    assert optimizer.grad_norm.shape == optimizer.skipped.shape == ()
