"""Autocast, the loss scale and deterministic kernels."""

from pathlib import Path

import pytest
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.model.options import PrecisionConfig
from bert_pretrain.model.precision import MixedPrecision, compute_dtype, emulation_notice
from bert_pretrain.optim import NVLamb
from tests.bert_pretrain.model.test_bert import build, micro_batch

CPU = torch.device("cpu")


def precision(compute: str = "fp16", scale: float = 1024.0, interval: int = 2) -> MixedPrecision:
    return MixedPrecision(PrecisionConfig(compute, scale, interval, tf32=False, deterministic=False), CPU)


def optimizer_with(gradient: float) -> tuple[NVLamb, torch.nn.Parameter]:
    weight = torch.nn.Parameter(torch.ones(4))
    weight.grad = torch.full((4,), gradient)
    return NVLamb([weight], lr=0.1), weight


def test_the_scale_follows_the_optimizers_decision() -> None:
    """By hand: halved on overflow, doubled after two applied steps in a row."""
    mixed = precision()
    optimizer, weight = optimizer_with(1.0)
    scales = []
    for gradient in (1.0, float("inf"), 1.0, 1.0, 1.0, float("nan")):
        before = weight.detach().clone()
        weight.grad = torch.full((4,), gradient)
        skipped = mixed.step(optimizer)
        finite = torch.tensor(gradient).isfinite().item()
        assert skipped.item() == (0.0 if finite else 1.0)
        assert torch.equal(weight, before) != finite
        scales.append(mixed.scale.item())
    assert scales == [1024, 512, 512, 1024, 1024, 512]


def test_scaled_gradients_give_the_update_of_unscaled_ones() -> None:
    updates = []
    for compute, factor in (("fp16", 1024.0), ("fp32", 1.0)):
        mixed = precision(compute)
        optimizer, weight = optimizer_with(0.0)
        weight.grad = torch.tensor([1.0, -2.0, 3.0, 0.5]) * factor
        mixed.step(optimizer)
        assert optimizer.grad_norm.item() == pytest.approx(14.25**0.5)
        updates.append(weight.detach().clone())
    torch.testing.assert_close(updates[0], updates[1], rtol=1e-6, atol=0)


def test_state_is_restored() -> None:
    mixed, other = precision(), precision()
    optimizer, _ = optimizer_with(float("inf"))
    mixed.step(optimizer)
    other.load_state_dict(mixed.state_dict())
    assert other.scale == mixed.scale == 512


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_autocast_computes_in_the_named_type_and_keeps_weights_float32(compute: str) -> None:
    layer = torch.nn.Linear(4, 4)
    with precision(compute).autocast():
        out = layer(torch.ones(2, 4))
    assert out.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[compute]
    out.float().sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32


def test_auto_avoids_emulated_bf16_on_cpu() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    expected = torch.bfloat16 if {"amx_tile", "avx512_bf16"} & set(flags) else torch.float32
    assert compute_dtype("auto", CPU) == expected
    told = emulation_notice("precision.compute", "bf16", CPU)
    assert bool(told) == (expected == torch.float32)
    assert not emulation_notice("precision.compute", "auto", CPU)
    assert not emulation_notice("precision.compute", "fp32", CPU)


@pytest.mark.parametrize(
    ("capability", "auto"), [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_a_gpu_before_ampere_has_no_bf16(
    capability: tuple[int, int], auto: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    device = torch.device("cuda")
    assert compute_dtype("auto", device) == auto
    told = emulation_notice("training.precision", "bf16", device)
    assert ("training.precision=bf16: this device has no bf16 instructions" in told) == (auto == torch.float16)


@pytest.mark.gpu
def test_auto_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert compute_dtype("auto", torch.device("cuda")) in (torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("values", "option"), [(("int8", 1.0, 1), "compute"), (("fp16", 0.0, 1), "initial"), (("fp16", 1.0, 0), "growth")]
)
def test_bad_options_are_named(values: tuple, option: str) -> None:
    with pytest.raises(ConfigError, match=f"precision.{option}"):
        PrecisionConfig(*values, tf32=False, deterministic=False)


def test_the_step_uses_deterministic_kernels_only() -> None:
    """torch raises for a kernel that is not deterministic. In bf16, as on GPUs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = PrecisionConfig("bf16", 1.0, 1, tf32=True, deterministic=True)
    try:
        mixed = MixedPrecision(options, device)
        assert torch.are_deterministic_algorithms_enabled()
        model = build().to(device)
        gradients = []
        for _ in range(2):
            model.zero_grad()
            with mixed.autocast():
                out = model(*micro_batch().to(device).tensors())
            (out.mlm_loss + out.nsp_loss).backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
