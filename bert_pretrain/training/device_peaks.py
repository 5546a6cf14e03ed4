"""Peak rates of GPUs as their data sheets state them, to compare MFU with other people's."""

import re

import torch

_TFLOPS = {
    ("V100",): 125,
    ("T4",): 65,
    ("A100",): 312,
    ("A800",): 312,
    ("A30",): 165,
    ("A40",): 149.7,
    ("A10",): 125,
    ("A6000",): 154.8,
    ("RTX", "3090"): 71,
    ("L4",): 121,
    ("L40",): 181,
    ("L40S",): 362,
    ("RTX", "4090"): 165.2,
    ("RTX", "6000", "Ada"): 364.2,
    ("H100", "PCIe"): 756,
    ("H100", "NVL"): 835,
    ("H100",): 989,
    ("H800",): 989,
    ("H200",): 989,
    ("GH200",): 989,
    ("B200",): 2250,
    ("GB200",): 2500,
    ("MI250X",): 191.5,  # one of the two devices of a package
    ("MI300X",): 1307,
}
"""Words of a device's name: dense 16-bit TFLOP/s of matrix products, sums in float32. The first that fits counts."""

_NO_BF16 = {("V100",), ("T4",)}


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of dense matrix products of the GPU that torch calls ``device_name``, by its data sheet.

    None if the device is not known or a part of one (MIG), and for types other than bf16 and fp16.
    """
    words = set(re.split(r"[^A-Za-z0-9]+", device_name))
    if "MIG" in words or dtype not in (torch.bfloat16, torch.float16):
        return None
    for name, tflops in _TFLOPS.items():
        if words.issuperset(name):
            return None if dtype == torch.bfloat16 and name in _NO_BF16 else tflops * 1e12
    return None
