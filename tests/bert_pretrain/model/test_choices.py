"""The line of the log that names attention and compiler, and why."""

from dataclasses import replace

import pytest
import torch

from bert_pretrain.model.bert import build_model
from bert_pretrain.model.choices import describe_choices
from bert_pretrain.model.options import ModelConfig, SpeedConfig

SHAPE = ModelConfig(16, 1, 2, 24, 16, 97, "gelu", 0.0, 0.0, 0.02, "auto", True)
SPEED = SpeedConfig(*[False] * 6, pad_vocabulary=None, compile=None, cuda_graphs=False)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("attention", "compiled", "expected"),
    [
        ("auto", None, "attention eager (auto: faster than sdpa on CPUs); not compiled (null: gains nothing on CPUs)"),
        ("sdpa", True, "attention sdpa; compiled"),
    ],
)
def test_the_choices_on_a_cpu(attention: str, compiled: bool | None, expected: str) -> None:
    shape, speed = replace(SHAPE, attention=attention), replace(SPEED, compile=compiled)
    assert describe_choices(build_model(shape, speed, 1, CPU), shape, speed, CPU) == f"  {expected}"


@pytest.mark.parametrize(
    ("capability", "kernel"),
    [
        ((9, 0), "the flash kernel only for micro-batches without padding: a mask rules it out"),
        ((7, 5), "without the flash kernel, which this GPU lacks"),
    ],
)
def test_the_kernel_of_sdpa_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], kernel: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: True)
    model = build_model(replace(SHAPE, attention="sdpa"), replace(SPEED, compile=True), 1, CPU)
    found = describe_choices(model, SHAPE, SPEED, torch.device("cuda"))
    assert found == f"  attention sdpa (auto: on GPUs), {kernel}; compiled (null: on GPUs)"
