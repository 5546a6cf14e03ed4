"""The matrix rates of the data sheets, by the names that torch gives to devices."""

import pytest
import torch

from bert_pretrain.options.config_files import CONFIG_DIR
from bert_pretrain.plan import hardware_peaks
from bert_pretrain.plan.hardware_peaks import data_sheet_rate, measured_matrix_rate

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", BF16, 312),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", BF16, None),  # a seventh of one
        ("NVIDIA H100 80GB HBM3", BF16, 989),
        ("NVIDIA H100 PCIe", BF16, 756),
        ("NVIDIA H100 NVL", FP16, 835),
        ("NVIDIA H200", BF16, 989),
        ("NVIDIA B200", BF16, 2250),
        ("NVIDIA L40S", BF16, 362),
        ("NVIDIA L40", BF16, None),
        ("Tesla V100-SXM2-32GB", FP16, 125),
        ("Tesla V100-SXM2-32GB", BF16, None),
        ("Tesla V100-PCIE-16GB", FP16, 112),
        ("Tesla T4", FP16, 65),
        ("Tesla T4", BF16, None),
        ("NVIDIA T400", FP16, None),
        ("NVIDIA GeForce RTX 4090", BF16, 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", BF16, None),
        ("NVIDIA GeForce RTX 4090 D", BF16, None),
        ("AMD Instinct MI300X", BF16, 1307.4),
        ("NVIDIA H100 80GB HBM3", torch.float32, None),
        ("x86_64 CPU, AVX512, 2 threads", torch.float32, None),
    ],
)
def test_the_rate_of_a_data_sheet(name: str, dtype: torch.dtype, tflops: float | None) -> None:
    found = data_sheet_rate(name, dtype)
    assert found == (None if tflops is None else pytest.approx(tflops * 1e12))


@pytest.mark.parametrize(
    ("gpu", "name"), [("a100_80g", "A100"), ("h100", "H100"), ("h200", "H200"), ("b200", "B200"), ("l40s", "L40S")]
)
def test_the_plan_s_devices_have_the_same_rates(gpu: str, name: str) -> None:
    text = (CONFIG_DIR / "gpu" / f"{gpu}.yaml").read_text()
    lines = [line for line in text.splitlines() if line.startswith("matrix_tflops:")]
    if lines:
        assert float(lines[0].split()[1]) * 1e12 == data_sheet_rate(f"NVIDIA {name}", BF16)


def test_without_memory_for_matrices_the_rate_that_was_reached_is_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured again while the run trains, when its memory may be full."""
    device = torch.device("cpu")
    monkeypatch.setattr(hardware_peaks, "_matrix_rates", {(device, torch.float32): 1.0})

    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "randn", full)
    assert measured_matrix_rate(device, torch.float32, reached=7.0) == 7.0
    assert measured_matrix_rate(device, torch.float32, reached=5.0) == 7.0
