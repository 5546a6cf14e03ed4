"""Build the optimizer from its options: which parameters decay, and which class updates them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim.adamh import AdamH
from bert_pretrain.optim.base import MeasuredOptimizer
from bert_pretrain.optim.freezing import freeze_parameters
from bert_pretrain.optim.lars import LARS
from bert_pretrain.optim.layerwise import LayerwiseOptimizer
from bert_pretrain.optim.muon import Muon
from bert_pretrain.optim.nvlamb import FUSED, NVLamb
from bert_pretrain.optim.options import AlgorithmConfig, OptimizerConfig
from bert_pretrain.optim.paired import MATRICES, PairedOptimizer
from bert_pretrain.optim.schedule_free import ScheduleFreeAdamW
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


_CLASSES: dict[str, Callable[..., MeasuredOptimizer]] = {
    "nvlamb": NVLamb,
    "lars": LARS,
    "adamw": AdamW,
    "adam": Adam,
    "sgd": SGD,
    "muon": Muon,
    "adamh": AdamH,
    "schedule_free_adamw": ScheduleFreeAdamW,
}
_OUTPUTS = ("seq_relationship", "decoder")
"""The modules of transformers' BERT that are output layers."""


def layer_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The decay groups, or, with ``others``, first a group ``matrices`` and then the decay groups of all other layers.

    Hidden matrices are the weights of linear layers, without output layers and what is tied to an embedding. The groups
    of ``others`` have ``lr_ratio``, by which their rate is multiplied.
    """
    if config.others is None:
        return decay_groups(model, config.weight_decay)
    tied = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hidden = {module.weight for name, module in linear.items() if not name.endswith(_OUTPUTS)} - tied
    matrices: list[tuple[str, nn.Parameter]] = []
    groups = decay_groups(model, config.others.weight_decay)
    for group in groups:
        matrices += [entry for entry in group["params"] if entry[1] in hidden]
        group["params"] = [entry for entry in group["params"] if entry[1] not in hidden]
        group["lr_ratio"] = config.others.lr_ratio
    groups = [{"name": MATRICES, "weight_decay": config.weight_decay, "params": matrices}, *groups]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer of ``config`` over the groups of ``model``, after freezing what ``config`` says.

    Raises ``ConfigError``. Collective if ``config.sharded`` is set.
    """
    freeze_parameters(model, config.freeze)
    groups = layer_groups(model, config)
    make: Callable[..., MeasuredOptimizer] = partial(_CLASSES[config.algorithm], **config.options())
    if config.others is not None:
        rate = config.lr * config.others.lr_ratio
        second = partial(_CLASSES[config.others.algorithm], lr=rate, **config.others.options())
        matrices = [group["name"] == MATRICES for group in groups]
        if any(matrices) and not all(matrices):
            make = partial(PairedOptimizer, first=make, second=second)
        elif not any(matrices):  # they are frozen
            make = second
    if config.sharded and dist.is_initialized() and dist.get_world_size() > 1:
        return ShardedOptimizer(groups, make)
    return make(groups)


def _inner(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers that do the work."""
    inner = optimizer.optim if isinstance(optimizer, ShardedOptimizer) else optimizer
    return list(inner.parts) if isinstance(inner, PairedOptimizer) else [inner]


def describe_optimizer(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> str:
    """One line for the optimizer, and one for each group: its layers, its size and the rule."""
    parts = _inner(optimizer)
    options: list[AlgorithmConfig] = [config] if config.others is None else [config, config.others]
    if len(parts) < len(options):  # the layers of one of them are frozen
        options = [config if optimizer.param_groups[0]["name"] == MATRICES else config.others]  # type: ignore[list-item]
    names = ", the others ".join(map(_described, parts, options))
    over = f", state sharded over {dist.get_world_size()} ranks" if isinstance(optimizer, ShardedOptimizer) else ""
    rules = {
        MATRICES: "hidden matrices",
        "decay": "all but biases and normalisation layers" if config.others is None else "embeddings and output layers",
        "no_decay": "biases and normalisation layers",
    }
    lines = [f"optimizer {names}{over}"]
    for group in optimizer.param_groups:
        params = group["params"]
        size = f"{len(params):,} layers, {sum(param.numel() for param in params):,} parameters"
        lines.append(f"  decay {group['weight_decay']:<8g}{size}: {rules[group['name']]}")
    return "\n".join(lines)


def _described(optimizer: torch.optim.Optimizer, options: AlgorithmConfig) -> str:
    chosen = ""
    if isinstance(optimizer, NVLamb) and optimizer.kernel == "auto":
        device = optimizer.param_groups[0]["params"][0].device.type
        works = f"{FUSED[device][1]} works on this {'GPU' if device == 'cuda' else 'CPU'}"
        chosen = f": {optimizer.running_kernel} ({optimizer.why_not_fused() or works})"
    return options.algorithm + (f", kernel {options.kernel}{chosen}" if options.kernel else "")


def layer_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the layers in ``layer_report``; empty if the optimizer has no report."""
    if not any(isinstance(part, NVLamb | LayerwiseOptimizer) for part in _inner(optimizer)):
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
