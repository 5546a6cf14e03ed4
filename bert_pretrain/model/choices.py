"""What the options that choose for themselves have chosen, and why, in lines for the log."""

import torch

from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.options import ModelConfig, SpeedConfig


def describe_choices(model: PretrainingModel, config: ModelConfig, speed: SpeedConfig, device: torch.device) -> str:
    """One line for attention and the compiler. ``config`` and ``speed`` as the user has given them."""
    gpu = device.type == "cuda"
    attention = f"attention {model.bert.config._attn_implementation}"
    if config.attention == "auto":
        attention += " (auto: on GPUs)" if gpu else " (auto: faster than sdpa on CPUs)"
    if gpu and model.bert.config._attn_implementation == "sdpa":
        attention += f", {sdpa_kernels(device)}"
    compiled = "compiled" if model.speed.compile else "not compiled"
    if speed.compile is None:
        compiled += " (null: on GPUs)" if gpu else " (null: gains nothing on CPUs)"
    return f"  {attention}; {compiled}"


def sdpa_kernels(device: torch.device) -> str:
    """Which of torch's kernels sdpa takes on a GPU: with a mask, as padding needs it, never the flash kernel."""
    flash = torch.backends.cuda.flash_sdp_enabled() and torch.cuda.get_device_capability(device) >= (8, 0)
    without_mask = "flash" if flash else "memory-efficient"
    return f"{without_mask} kernel for micro-batches without padding, memory-efficient for those with a mask"
