"""Optimizers, their options, and which parameters decay."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.optim.torch_fused import SGD, Adam, AdamW
from bert_pretrain.optim.nvlamb import NVLamb

__all__ = ["AdamW", "NVLamb", "OptimizerConfig", "build_optimizer", "decay_groups"]

ALGORITHMS = ("nvlamb", "adamw")
NVLAMB_REQUIRED = ("pre_normalization", "trust_ratio", "bias_correction", "kernel")
NVLAMB_ONLY = (*NVLAMB_REQUIRED, "phi_min", "phi_max")


@dataclass
class OptimizerConfig:
    """An optimizer by name and its options. The presets in ``configs/optimizer`` hold the values."""

    algorithm: str
    """``nvlamb`` (all forms of LAMB) | ``adamw``."""
    lr: float
    """Peak learning rate; the schedule scales it."""
    betas: list[float]
    """Decay of the first and second moment, two numbers in [0, 1)."""
    eps: float
    """Added to the root of the second moment, above 0."""
    weight_decay: float
    """Decay of weight matrices and embeddings; biases and LayerNorm have 0."""
    max_grad_norm: float | None = None
    """nvlamb: needed with ``pre_normalization=clip`` and unused otherwise. adamw: norm to clip to; null: no clip."""
    pre_normalization: str | None = None
    """nvlamb only: ``unit`` | ``clip`` | ``none``: what the gradient is divided by before anything else."""
    trust_ratio: str | None = None
    """nvlamb only: ``all`` | ``decayed``: the layers whose update is scaled to the length of their weights."""
    bias_correction: bool | None = None
    """nvlamb only: whether moments are corrected for their start at 0."""
    phi_min: float | None = None
    """nvlamb only, optional: lower bound of the weight norm in the trust ratio."""
    phi_max: float | None = None
    """nvlamb only, optional: upper bound of the weight norm in the trust ratio."""
    kernel: str | None = None
    """nvlamb only: ``auto`` | ``reference`` | ``foreach``."""

    def __post_init__(self) -> None:
        require(self.algorithm in ALGORITHMS, "optimizer.algorithm", self.algorithm, " | ".join(ALGORITHMS))
        require(0 < self.lr < math.inf, "optimizer.lr", self.lr, "a number above 0")
        require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", self.weight_decay, "0 or more")
        two = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(two, "optimizer.betas", self.betas, "two numbers in [0, 1)")
        require(0 < self.eps < math.inf, "optimizer.eps", self.eps, "a number above 0")
        if self.algorithm == "nvlamb":
            for option in NVLAMB_REQUIRED:
                if getattr(self, option) is None:
                    raise ConfigError(f"optimizer.{option} is not set; optimizer.algorithm=nvlamb needs it")
            if self.pre_normalization == "clip" and self.max_grad_norm is None:
                raise ConfigError("optimizer.max_grad_norm is not set; optimizer.pre_normalization=clip needs it")
        else:
            for option in NVLAMB_ONLY:
                found = getattr(self, option)
                require(found is None, f"optimizer.{option}", found, f"null with algorithm={self.algorithm}")


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups, ``decay`` and ``no_decay``, in the model's order.

    Biases and normalisation layers do not decay, as in Google's BERT. A tied parameter comes once, under its first
    name. Each group holds ``name``, ``weight_decay`` and ``params`` as (name, parameter), from which torch makes
    ``param_names``. A group without parameters is left out. Raises ``ConfigError`` where nothing is trainable.
    """
    norms = (nn.LayerNorm, nn.RMSNorm)
    norm_prefixes = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, norms))
    decayed: list[tuple[str, nn.Parameter]] = []
    others: list[tuple[str, nn.Parameter]] = []
    for name, param in model.named_parameters():  # yields a tied parameter once
        if not param.requires_grad:
            continue
        is_norm = name.startswith(norm_prefixes) or "LayerNorm" in name
        exempt = is_norm or name.rpartition(".")[2] == "bias"
        (others if exempt else decayed).append((name, param))
    groups = [
        {"name": "decay", "weight_decay": weight_decay, "params": decayed},
        {"name": "no_decay", "weight_decay": 0.0, "params": others},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError("the model has no trainable parameter; allowed: at least one with requires_grad")
    return groups


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer of ``config`` over the decay groups of ``model``. Raises ``ConfigError``."""
    groups = decay_groups(model, config.weight_decay)
    betas = (config.betas[0], config.betas[1])
    if config.algorithm == "adamw":
        return AdamW(groups, config.lr, betas, config.eps, config.weight_decay, max_grad_norm=config.max_grad_norm)
    # __post_init__ has seen to it that these are set.
    assert config.pre_normalization is not None
    assert config.trust_ratio is not None
    assert config.bias_correction is not None
    assert config.kernel is not None
    return NVLamb(
        groups,
        config.lr,
        betas,
        config.eps,
        config.weight_decay,
        pre_normalization=config.pre_normalization,
        max_grad_norm=1.0 if config.max_grad_norm is None else config.max_grad_norm,
        trust_ratio=config.trust_ratio,
        bias_correction=config.bias_correction,
        phi_min=config.phi_min,
        phi_max=config.phi_max,
        kernel=config.kernel,
    )
