"""Writes the moments of NVIDIA's optimizer, with the model, as a checkpoint that ``init_from`` takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import BertForPreTraining

from bert_pretrain.checkpoint.store import CheckpointStore, Progress
from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.convert.assemble import Converted
from bert_pretrain.hub.convert.layout import rename
from bert_pretrain.hub.convert.nvidia import NVIDIA, parameter_groups
from bert_pretrain.optim.build import decay_groups
from bert_pretrain.optim.nvlamb import NVLamb
from bert_pretrain.options.config_files import CONFIG_DIR

PRESET = "nvidia_code"
"""The optimizer whose moments these are: ``configs/optimizer/nvidia_code.yaml``."""


def read_moments(content: Mapping[str, Any], converted: Converted) -> tuple[dict[str, dict[str, Tensor]], int]:
    """``exp_avg`` and ``exp_avg_sq`` by the weight's name in ``transformers``, and the number of steps.

    Raises ``ConfigError`` if the file has none, or if they do not fit the model.
    """
    if converted.architecture != "BertForPreTraining" or "optimizer" not in content:
        raise ConfigError(
            "moments is true, but source has no optimizer state with a whole BertForPreTraining; give moments=false, "
            "or a ckpt_*.pt as NVIDIA's run_pretraining.py writes it"
        )
    groups = content["optimizer"]["param_groups"]
    saved = content["optimizer"]["state"]
    moments: dict[str, dict[str, Tensor]] = {}
    steps = set()
    for group, names in zip(groups, parameter_groups(content), strict=True):
        for number, name in zip(group["params"], names, strict=True):
            (target,) = rename({name: content["model"][name]}, NVIDIA).weights
            entry = saved.get(number, {})
            step = group.get("step", entry.get("step"))
            for key in ("exp_avg", "exp_avg_sq"):
                found = tuple(entry[key].shape) if key in entry else None
                if found != converted.weights[target].shape:
                    raise ConfigError(f"source: {key} of {name} has shape {found}; its weight has another, or it lacks")
            moments[target] = {key: entry[key].to(torch.float32) for key in ("exp_avg", "exp_avg_sq")}
            steps.add(int(step) if step is not None else None)
    if len(steps) != 1 or None in steps:
        raise ConfigError(f"source: its optimizer state gives the step as {steps}; allowed: one number for all")
    return moments, steps.pop()  # type: ignore[return-value]


def write_checkpoint(
    moments: dict[str, dict[str, Tensor]], step: int, model_folder: Path, origin: str, directory: Path
) -> Path:
    """Write ``directory/step_N`` with the model in ``model_folder`` and its moments; returns its path."""
    model: Any = BertForPreTraining.from_pretrained(model_folder, dtype=torch.float32)
    preset = OmegaConf.load(CONFIG_DIR / "optimizer" / f"{PRESET}.yaml")
    optimizer = NVLamb(decay_groups(nn.ModuleDict({"bert": model}), preset.weight_decay), lr=0.0)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            own = moments[name.removeprefix("bert.")]
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), **own}
    preset.lr = 0.0
    config = OmegaConf.to_yaml(OmegaConf.create({"converted_from": origin, "optimizer": preset}))
    store = CheckpointStore(directory, 1, model_folder)
    return store.save(model, optimizer.state_dict(), Progress(step=step, attempts=step), config)
