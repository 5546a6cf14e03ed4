"""Lines for the log: what ``attention=auto`` and ``compile=null`` have chosen, and why."""

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
    """When torch takes the flash kernel on a GPU."""
    if not torch.backends.cuda.flash_sdp_enabled() or torch.cuda.get_device_capability(device) < (8, 0):
        return "without the flash kernel, which this GPU lacks"
    return "the flash kernel only for micro-batches without padding: a mask rules it out"
