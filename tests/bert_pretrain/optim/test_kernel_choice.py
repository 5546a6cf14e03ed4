"""Which kernel ``kernel=auto`` is, and what it does where a compiler is broken."""

import sys

import pytest
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import NVLamb, nvlamb_cpu, usable
from bert_pretrain.optim.build import build_optimizer, describe_optimizer
from bert_pretrain.optim.options import OptimizerConfig
from tests.bert_pretrain.optim.single_layer import gradient, parameter


def test_auto_names_the_kernel_that_runs():
    assert NVLamb([parameter()], 0.1).running_kernel == "fused"
    assert NVLamb([parameter(dtype=torch.bfloat16)], 0.1).running_kernel == "fused"
    assert NVLamb([parameter(dtype=torch.float64)], 0.1).running_kernel == "foreach"
    assert NVLamb([parameter(6, 4).detach().t().requires_grad_()], 0.1).running_kernel == "foreach"
    assert NVLamb([parameter()], 0.1, kernel="reference").running_kernel == "reference"
    options = {"betas": [0.9, 0.999], "eps": 1e-6, "pre_normalization": "unit", "trust_ratio": "all"}
    config = OptimizerConfig("nvlamb", 0.01, lr=0.1, **options, bias_correction=True, kernel="auto")
    text = describe_optimizer(build_optimizer(torch.nn.Linear(2, 2), config), config)
    assert "kernel auto: fused (numba works on this CPU)" in text
    assert NVLamb([parameter(dtype=torch.float64)], 0.1).why_not_fused() == "a layer is float64 or not contiguous"


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
    assert optimizer.why_not_fused() == "numba cannot be used"
    fused = NVLamb([param], 0.1, kernel="fused")
    with pytest.raises(ConfigError, match="kernel is 'fused' and numba is installed but cannot be used"):
        fused.step()
