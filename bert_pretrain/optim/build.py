"""Build the optimizer from its options: which parameters decay, and which class updates them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim.freezing import freeze_parameters
from bert_pretrain.optim.lars import LARS
from bert_pretrain.optim.nvlamb import PACKAGES, NVLamb
from bert_pretrain.optim.options import OptimizerConfig
from bert_pretrain.optim.sharded import ShardedOptimizer
from bert_pretrain.optim.torch_fused import SGD, Adam, AdamW


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups, ``decay`` and ``no_decay``, in the model's order.

    Biases and normalisation layers have no decay, as in Google's BERT. A tied parameter is listed once, under its first
    name. Each group has ``name``, ``weight_decay`` and ``params`` as (name, parameter), from which torch makes
    ``param_names``. A group without parameters is left out. Raises ``ConfigError`` if nothing is trainable.
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
    """Return the optimizer of ``config`` over the decay groups of ``model``, after freezing what ``config`` says.

    Raises ``ConfigError``. Collective if ``config.sharded`` is set.
    """
    freeze_parameters(model, config.freeze)
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
    """One line for the optimizer, and one for each decay group: its layers, its size and the rule."""
    inner = optimizer.optim if isinstance(optimizer, ShardedOptimizer) else optimizer
    chosen = ""
    if isinstance(inner, NVLamb) and inner.kernel == "auto":
        device = inner.param_groups[0]["params"][0].device.type
        reason = inner.why_not_fused() or f"{PACKAGES[device]} works on this {'GPU' if device == 'cuda' else 'CPU'}"
        chosen = f": {inner.running_kernel} ({reason})"
    kernel = f", kernel {config.kernel}{chosen}" if config.algorithm == "nvlamb" else ""
    over = f", state sharded over {dist.get_world_size()} ranks" if isinstance(optimizer, ShardedOptimizer) else ""
    rules = {"decay": "all but biases and normalisation layers", "no_decay": "biases and normalisation layers"}
    lines = [f"optimizer {config.algorithm}{kernel}{over}"]
    for group in optimizer.param_groups:
        params = group["params"]
        size = f"{len(params):,} layers, {sum(param.numel() for param in params):,} parameters"
        lines.append(f"  decay {group['weight_decay']:<8g}{size}: {rules[group['name']]}")
    return "\n".join(lines)


def layer_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the layers in ``layer_report``; empty if the optimizer has no report."""
    inner = optimizer.optim if isinstance(optimizer, ShardedOptimizer) else optimizer
    if not isinstance(inner, NVLamb | LARS):
        return []
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    prefix = "bert."  # the attribute of PretrainingModel that holds transformers' model
    return [name.removeprefix(prefix) for name in names] if all(name.startswith(prefix) for name in names) else names


def moments_by_name(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], str]:
    """The saved state ``saved`` of an optimizer over other layers, as a state of ``optimizer``; and what differs.

    Layers are matched by name: one that was not trained before has no state and starts at 0. The options are those of
    ``optimizer``. The second result is a line for the log; empty if the layers are the same.
    """
    groups = torch.optim.Optimizer.state_dict(optimizer)["param_groups"]  # a sharded optimizer's own is collective
    names = [name for group in groups for name in group.get("param_names", ())]
    before = [name for group in saved["param_groups"] for name in group.get("param_names", ())]
    if names == before or not before:
        return saved | {"param_groups": groups}, ""
    old_ids = dict(zip(before, (i for group in saved["param_groups"] for i in group["params"]), strict=True))
    new_ids = dict(zip(names, (i for group in groups for i in group["params"]), strict=True))
    state = {i: saved["state"][old_ids[name]] for name, i in new_ids.items() if old_ids.get(name) in saved["state"]}
    fresh, dropped = (len(set(some) - set(others)) for some, others in ((names, before), (before, names)))
    line = f"{len(state)} layers keep their moments; {fresh} were not trained before and start at 0"
    line += f"; those of {dropped}, which this run does not train, are left out" if dropped else ""
    return {"state": state, "param_groups": groups}, line
