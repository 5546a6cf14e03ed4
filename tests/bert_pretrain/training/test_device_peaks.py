"""Peaks of GPUs by the names that torch reports."""

import pytest
import torch
import yaml

from bert_pretrain.config_files import CONFIG_DIR
from bert_pretrain.training.device_peaks import peak_flops


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA A10G", None),  # not an A10
        ("Tesla V100-SXM2-32GB", None),  # has no bf16
        ("x86_64 CPU, AVX512, 2 threads", None),
    ],
)
def test_peak_of_a_name(name: str, expected: float | None) -> None:
    assert peak_flops(name, torch.bfloat16) == expected


def test_types() -> None:
    assert peak_flops("Tesla V100-SXM2-32GB", torch.float16) == 125e12
    assert peak_flops("NVIDIA H200", torch.float16) == 989e12
    assert peak_flops("NVIDIA H200", torch.float32) is None  # TF32 or not: an option of the run


def test_the_plan_states_the_same_peaks() -> None:
    compared = 0
    for path in (CONFIG_DIR / "gpu").glob("*.yaml"):
        gpu = yaml.safe_load(path.read_text())
        if "matrix_tflops" not in gpu or path.stem in ("cpu", "v100_32g"):  # the V100 of a DGX-2H has a higher clock
            continue
        peak = peak_flops(gpu["name"], torch.float16)
        assert peak is not None, path
        assert peak == gpu["matrix_tflops"] * 1e12, path
        compared += 1
    assert compared >= 4
