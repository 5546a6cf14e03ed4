"""Optimizers, their options, and which parameters decay."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.optim.lars import LARS
from bert_pretrain.optim.nvlamb import KERNELS, PRE_NORMALIZATIONS, NVLamb
from bert_pretrain.optim.sharded import ShardedOptimizer
from bert_pretrain.optim.torch_fused import SGD, Adam, AdamW
from bert_pretrain.optim.trust import TRUST_RATIOS

__all__ = [
    "LARS",
    "SGD",
    "Adam",
    "AdamW",
    "NVLamb",
    "OptimizerConfig",
    "ShardedOptimizer",
    "build_optimizer",
    "decay_groups",
    "describe_optimizer",
    "layer_names",
]

REQUIRED = {
    "nvlamb": ("betas", "eps", "pre_normalization", "trust_ratio", "bias_correction", "kernel"),
    "lars": ("momentum", "eps", "trust_coefficient", "clip", "trust_ratio"),
    "adamw": ("betas", "eps"),
    "adam": ("betas", "eps"),
    "sgd": ("momentum",),
}
"""The options that an algorithm needs beside lr and weight_decay."""
OPTIONAL = {
    "nvlamb": ("max_grad_norm", "phi_min", "phi_max"),
    "lars": (),
    "adamw": ("max_grad_norm",),
    "adam": ("max_grad_norm",),
    "sgd": ("max_grad_norm",),
}
"""Those that it may have; all others are null."""
CHOICES = {
    "algorithm": tuple(REQUIRED),
    "pre_normalization": PRE_NORMALIZATIONS,
    "trust_ratio": TRUST_RATIOS,
    "kernel": tuple(KERNELS),
}


@dataclass
class OptimizerConfig:
    """An optimizer by name and its options. The presets in ``configs/optimizer`` hold the values."""

    algorithm: str
    """``nvlamb`` (all forms of LAMB) | ``lars`` (LARC too) | ``adamw`` | ``adam`` | ``sgd``."""
    lr: float
    """Peak learning rate; the schedule scales it."""
    weight_decay: float
    """Decay of weight matrices and embeddings; biases and normalisation layers have 0."""
    betas: list[float] | None = None
    """nvlamb, adamw, adam: decay of the first and second moment, two numbers in [0, 1)."""
    eps: float | None = None
    """All but sgd: added to the root of the second moment (lars: to the denominator of the rate), above 0."""
    momentum: float | None = None
    """lars, sgd: what the buffer keeps of itself in a step, in [0, 1)."""
    max_grad_norm: float | None = None
    """nvlamb: needed with ``pre_normalization=clip`` and unused otherwise. adamw, adam, sgd: norm to clip to; null: no
    clip."""
    pre_normalization: str | None = None
    """nvlamb only: ``unit`` | ``clip`` | ``none``: what the gradient is divided by before anything else."""
    trust_ratio: str | None = None
    """nvlamb, lars: ``all`` | ``decayed``: the layers whose update is scaled to the length of their weights."""
    bias_correction: bool | None = None
    """nvlamb only: whether moments are corrected for their start at 0."""
    phi_min: float | None = None
    """nvlamb only, optional: lower bound of the weight norm in the trust ratio."""
    phi_max: float | None = None
    """nvlamb only, optional: upper bound of the weight norm in the trust ratio."""
    kernel: str | None = None
    """nvlamb only: ``auto`` | ``reference`` | ``foreach`` | ``fused`` | ``apex``."""
    trust_coefficient: float | None = None
    """lars only: eta, the length of a layer's update relative to its weights, above 0."""
    clip: bool | None = None
    """lars only: true is LARC, which takes the smaller of the layer's rate and ``lr``."""
    sharded: bool = False
    """Divide state and work over the ranks, whole layers each (ZeRO 1). Of no effect on one rank."""

    def __post_init__(self) -> None:
        for option, allowed in CHOICES.items():
            found = getattr(self, option)
            require(found is None or found in allowed, f"optimizer.{option}", found, " | ".join(allowed))
        for option in (name for names in (*REQUIRED.values(), *OPTIONAL.values()) for name in names):
            found, needed = getattr(self, option), REQUIRED[self.algorithm]
            if option in needed and found is None:
                raise ConfigError(f"optimizer.{option} is not set; optimizer.algorithm={self.algorithm} needs it")
            taken = option in needed or option in OPTIONAL[self.algorithm] or found is None
            require(taken, f"optimizer.{option}", found, f"null with algorithm={self.algorithm}")
        if self.pre_normalization == "clip" and self.max_grad_norm is None:
            raise ConfigError("optimizer.max_grad_norm is not set; optimizer.pre_normalization=clip needs it")
        self._check_ranges()

    def _check_ranges(self) -> None:
        require(0 < self.lr < math.inf, "optimizer.lr", self.lr, "a number above 0")
        require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", self.weight_decay, "0 or more")
        two = self.betas is None or (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas))
        require(two, "optimizer.betas", self.betas, "two numbers in [0, 1)")
        kept = self.momentum
        require(kept is None or 0 <= kept < 1, "optimizer.momentum", kept, "a number in [0, 1)")
        for option in ("eps", "trust_coefficient", "max_grad_norm"):
            found = getattr(self, option)
            require(found is None or 0 < found < math.inf, f"optimizer.{option}", found, "a number above 0")

    def options(self) -> dict[str, Any]:
        """What the optimizer's class takes beside the parameters: the options of the algorithm that are set."""
        names = ("lr", "weight_decay", *REQUIRED[self.algorithm], *OPTIONAL[self.algorithm])
        given = asdict(self)
        return {name: given[name] for name in names if given[name] is not None}


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
    """Return the optimizer of ``config`` over the decay groups of ``model``. Raises ``ConfigError``.

    With ``config.sharded``, every rank of the default process group has to call it.
    """
    groups = decay_groups(model, config.weight_decay)
    classes: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "nvlamb": NVLamb,
        "lars": LARS,
        "adamw": AdamW,
        "adam": Adam,
        "sgd": SGD,
    }
    make = partial(classes[config.algorithm], **config.options())
    if config.sharded and dist.is_initialized() and dist.get_world_size() > 1:
        return ShardedOptimizer(groups, make)
    return make(groups)


def describe_optimizer(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> str:
    """The optimizer in a line, and a line for each decay group: its layers, its size and the rule."""
    kernel = f", kernel {kernel_of(optimizer)}" if config.algorithm == "nvlamb" else ""
    over = f", state divided over {dist.get_world_size()} ranks" if isinstance(optimizer, ShardedOptimizer) else ""
    rules = {"decay": "all but biases and normalisation layers", "no_decay": "biases and normalisation layers"}
    lines = [f"optimizer {config.algorithm}{kernel}{over}"]
    for group in optimizer.param_groups:
        params = group["params"]
        size = f"{len(params):,} layers, {sum(param.numel() for param in params):,} parameters"
        lines.append(f"  decay {group['weight_decay']:<8g}{size}: {rules[group['name']]}")
    return "\n".join(lines)


def layer_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """The layers of ``layer_report``, in its order; none where the optimizer adapts no layers."""
    inner = optimizer.optim if isinstance(optimizer, ShardedOptimizer) else optimizer
    if not isinstance(inner, NVLamb | LARS):
        return []
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    prefix = "bert."  # where the model holds transformers' under this name, the layers have transformers' names
    return [name.removeprefix(prefix) for name in names] if all(name.startswith(prefix) for name in names) else names


def kernel_of(optimizer: torch.optim.Optimizer) -> str:
    """The kernel that ``auto`` became."""
    inner = optimizer.optim if isinstance(optimizer, ShardedOptimizer) else optimizer
    return str(getattr(inner, "kernel", "torch"))
