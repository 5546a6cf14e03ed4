"""The optimizers in the loops of others: compiled, in inference mode, with odd rates and scales."""

import pytest
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import NVLamb
from tests.bert_pretrain.optim.single_layer import FAMILY, KERNELS, gradient, parameter


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
