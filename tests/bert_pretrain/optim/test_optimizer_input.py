"""Wrong arguments of an optimizer: a ConfigError (a ValueError) that names the option."""

from collections.abc import Callable

import pytest
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import LARS, SGD, Adam, AdamW, NVLamb
from tests.bert_pretrain.optim.single_layer import FAMILY, KERNELS, parameter

MOMENTS, MOMENTUM = (NVLamb, AdamW, Adam), (LARS, SGD)

BAD_OPTIONS: list[tuple[tuple, str, object]] = [
    (tuple(FAMILY), "lr", -1.0),
    (tuple(FAMILY), "lr", float("nan")),
    (tuple(FAMILY), "lr", torch.ones(2)),
    (tuple(FAMILY), "weight_decay", -0.01),
    (MOMENTS, "betas", (1.0, 0.999)),
    (MOMENTS, "betas", (0.9, -0.1)),
    (MOMENTS, "betas", (0.9,)),
    ((*MOMENTS, LARS), "eps", 0.0),
    ((*MOMENTS, LARS), "eps", -1e-6),
    (MOMENTUM, "momentum", 1.0),
    (MOMENTUM, "momentum", -0.5),
    ((NVLamb, AdamW, Adam, SGD), "max_grad_norm", 0.0),
    ((NVLamb, AdamW, Adam, SGD), "max_grad_norm", float("inf")),
    ((NVLamb, LARS), "trust_ratio", "none"),
    ((LARS,), "trust_coefficient", 0.0),
    ((NVLamb,), "pre_normalization", "both"),
    ((NVLamb,), "kernel", "quick"),
    ((NVLamb,), "phi_min", -1.0),
    ((NVLamb,), "phi_max", 0.0),
]


def ones(*shape, **options):
    return torch.ones(*shape, requires_grad=True, **options)


@pytest.mark.parametrize(("make", "option", "value"), [(make, o, v) for makes, o, v in BAD_OPTIONS for make in makes])
def test_bad_option_is_named(make, option, value):
    with pytest.raises(ConfigError, match=rf"{option} is .*allowed: "):
        make([ones(2)], **({"lr": 0.1} | {option: value}))


@pytest.mark.parametrize("make", FAMILY)
def test_bad_option_of_a_group_is_named(make):
    with pytest.raises(ConfigError, match="lr is -1"):
        make([{"params": [ones(2)], "lr": -1.0}], 0.1)
    with pytest.raises(ConfigError, match="weight_decay is -2"):
        make([{"params": [ones(2)], "weight_decay": -2.0}], 0.1)


def test_bounds_of_phi_in_the_wrong_order():
    with pytest.raises(ConfigError, match="phi_min is 2"):
        NVLamb([ones(2)], 0.1, phi_min=2.0, phi_max=1.0)


def _twice(make: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    first = ones(6)
    return [first, ones(2), make(first)]


@pytest.mark.parametrize("again", [lambda p: p, lambda p: p.detach().requires_grad_(), lambda p: p.detach()[:3]])
@pytest.mark.parametrize("make", FAMILY)
def test_parameter_that_appears_twice_is_an_error(make, again):
    with pytest.raises(ConfigError, match="parameter 2 of group 0 shares its memory with parameter 0 of group 0"):
        make(_twice(again), 0.1)
    first, _, other = _twice(again)
    with pytest.raises(ConfigError, match="parameter 0 of group 1 shares its memory with parameter 0 of group 0"):
        make([{"params": [first]}, {"params": (p for p in [other])}], 0.1)


@pytest.mark.parametrize("make", FAMILY)
def test_sparse_gradient_mixed_devices_and_integers_are_errors(make):
    table = torch.nn.Embedding(10, 2, sparse=True)
    optimizer = make(table.parameters(), 0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match=r"gradient of parameter 0 is torch\.sparse_coo; allowed: dense"):
        optimizer.step()
    with pytest.raises(ConfigError, match=r"several devices .*parameter 0 of group 0 on cpu.*on meta"):
        make([ones(1), ones(1, device="meta")], 0.1)
    with pytest.raises(ConfigError, match="dtype of parameter 0 of group 0"):
        make([torch.ones(2, dtype=torch.long)], 0.1)


@pytest.mark.parametrize("make", [LARS, AdamW, Adam, SGD])
def test_half_precision_needs_masters_which_only_nvlamb_has(make):
    with pytest.raises(ConfigError, match=r"dtype of a parameter is torch\.bfloat16; allowed: float32 or float64"):
        make([ones(2, dtype=torch.bfloat16)], 0.1)


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
