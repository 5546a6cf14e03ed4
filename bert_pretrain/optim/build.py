"""From options to an optimizer: which parameters decay, and which class updates them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim.lars import LARS
from bert_pretrain.optim.nvlamb import NVLamb
from bert_pretrain.optim.options import OptimizerConfig
from bert_pretrain.optim.sharded import ShardedOptimizer
from bert_pretrain.optim.torch_fused import SGD, Adam, AdamW


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
