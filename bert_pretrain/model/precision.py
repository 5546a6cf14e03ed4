"""Autocast and loss scaling.

The optimizer decides from the norm of the whole gradient whether a step is skipped, and the loss scale follows that
decision. The optimizer also unscales, so no extra pass over the gradients is needed.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from bert_pretrain.errors import require
from bert_pretrain.model.options import PrecisionConfig

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_GROWTH, _BACKOFF = 2.0, 0.5


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of ``precision.compute`` on ``device``."""
    if name != "auto":
        return DTYPES[name]
    if has_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` has instructions for products in bf16. Without, torch emulates them, many times slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def emulation_notice(option: str, name: str, device: torch.device) -> str:
    """What to say where the ``name`` that ``option`` chose is emulated on ``device``; else empty."""
    if name != "bf16" or has_bf16(device):
        return ""
    better = dtype_name(compute_dtype("auto", device))
    return f"{option}=bf16: this device has no bf16 instructions, and emulation is many times slower than {better}"


def dtype_name(dtype: torch.dtype) -> str:
    """The choice of ``precision.compute`` that means ``dtype``."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def check_compute(option: str, name: str, device: torch.device) -> None:
    """Raise ``ConfigError`` where ``option`` chose fp16 on a CPU, where its products are slower than in float32."""
    require(not (device.type == "cpu" and name == "fp16"), option, "fp16", "auto, bf16, fp32 on a CPU")


class MixedPrecision:
    """Autocast for the forward pass, and the loss scale (constantly 1 unless the type is fp16)."""

    def __init__(self, config: PrecisionConfig, device: torch.device) -> None:
        self.device = device
        self.dtype = compute_dtype(config.compute, device)
        self.scaled = self.dtype == torch.float16
        torch.backends.cuda.matmul.allow_tf32 = config.tf32
        torch.use_deterministic_algorithms(config.deterministic)
        self.growth_interval = config.growth_interval
        start = config.initial_loss_scale if self.scaled else 1.0
        self.scale = torch.tensor(start, dtype=torch.float32, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def autocast(self, enabled: bool = True) -> AbstractContextManager[object]:
        """Context of forward passes; with ``enabled=False``, a nested context without autocast."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled)

    def step(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Step ``optimizer`` on scaled gradients; return a 0-d float tensor, 1 if the step was skipped.

        The new scale is computed on the device, without a synchronisation.
        """
        if self.scaled:
            optimizer.grad_scale = self.scale  # type: ignore[attr-defined]
        optimizer.step()
        skipped: torch.Tensor = optimizer.skipped  # type: ignore[attr-defined]
        if self.scaled:
            torch._amp_update_scale_(self.scale, self._good_steps, skipped, _GROWTH, _BACKOFF, self.growth_interval)
        return skipped

    def state_dict(self) -> dict[str, float] | None:
        """Loss scale and applied steps since it changed; None without scaling. A device synchronisation."""
        if not self.scaled:
            return None
        return {"loss_scale": self.scale.item(), "good_steps": self._good_steps.item()}

    def load_state_dict(self, state: dict[str, float] | None) -> None:
        """Restore a ``state_dict``; no effect if this run or the saved one does not scale."""
        if self.scaled and state is not None:
            self.scale.fill_(state["loss_scale"])
            self._good_steps.fill_(int(state["good_steps"]))
