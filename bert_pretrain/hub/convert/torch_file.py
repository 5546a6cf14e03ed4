"""Reads PyTorch files without running anything in them, and tells which layout they have."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.convert import nvidia
from bert_pretrain.hub.convert.layout import Layout, Renamed, rename
from bert_pretrain.hub.convert.nvidia import NVIDIA
from bert_pretrain.hub.convert.pytorch import PYTORCH
from bert_pretrain.hub.convert.uer import UER

LAYOUTS: tuple[Layout, ...] = (NVIDIA, UER, PYTORCH)
_REFUSED = {
    r"(^|\.)language_model\.|query_key_value": "Megatron-LM",
    r"^(module\.)?(roberta|xlm_roberta|camembert)\.": "RoBERTa",
    r"albert_layer_groups": "ALBERT",
    r"^(module\.)?(electra|generator\.|discriminator)": "ELECTRA",
    r"^(module\.)?(distilbert\.|transformer\.layer\.)": "DistilBERT",
    r"(^|\.)h\.\d+\.(attn|mlp)\.": "GPT-2",
    r"^(module\.)?(deberta|model\.(layers|decoder|encoder)\.)": "another architecture",
}
"""By a pattern of a name: what is named in the refusal."""


class Discarded:
    """Stands in for an object of the training program that a checkpoint holds beside its weights. It does nothing."""

    def __init__(self, *args: object, **options: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


_DISCARDED = (
    "torch.utils.data.dataloader.DataLoader",
    "torch.utils.data.dataloader._DatasetKind",
    "torch.utils.data.sampler.RandomSampler",
    "torch.utils.data.sampler.SequentialSampler",
    "torch.utils.data.sampler.BatchSampler",
    "torch.utils.data._utils.collate.default_collate",
    "torch.utils.data._utils.fetch._MapDatasetFetcher",
    "__main__.pretraining_dataset",
    "__main__.WorkerInitObj",
    "argparse.Namespace",
    "apex.amp.scaler.LossScaler",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
)
"""What NVIDIA's code until 2022 pickled beside the weights: its data loader, and options. None of it is imported."""


def load(path: Path) -> dict[str, Any]:
    """The content of a PyTorch or safetensors file, on the CPU.

    Raises ``ConfigError`` for a file that cannot be read, and for a pickle that names anything but tensors and the
    objects above: such a file could run code, and nothing in it is run.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([(Discarded, name) for name in _DISCARDED]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol; what cannot be read raises
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises five classes for a damaged file, pickle's among them
        raise ConfigError(_in_plain_words(path, str(error))) from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"source {path} holds a {type(content).__name__}; allowed: a state dict of a BERT")
    return dict(content)


def _in_plain_words(path: Path, text: str) -> str:
    if found := re.search(r"(?:GLOBAL|global|class|function)\s+`?([\w.]+\.[\w.]+)`?", text):
        return (
            f"source {path}: to read it would run {found[1]}; nothing in it was run. Allowed: tensors only. "
            "Save the model's state_dict() alone with the program that wrote the file"
        )
    if "legacy .tar format" in text or "Unsupported operand" in text or "Unsupported class" in text:
        return f"source {path} is a pickle that holds more than tensors; nothing in it was run. Allowed: tensors only"
    reason = (text.splitlines() or ["it is empty"])[0][:120]
    return f"source {path} is truncated or no checkpoint of PyTorch ({reason}); copy it once more"


def state_dict_of(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the model in a file's content, and the names of what else it holds."""
    for key in ("model", "state_dict", "model_state_dict", "module"):
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            others = [f"{name} ({_described(value)})" for name, value in content.items() if name != key]
            content = inner
            break
    else:
        others = []
    others += [f"{name} ({_described(value)})" for name, value in content.items() if not isinstance(value, Tensor)]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}, others


def _described(value: object) -> str:
    if isinstance(value, Mapping) and "param_groups" in value:
        return "optimizer state"
    return f"{type(value).__name__}, {len(value)} entries" if isinstance(value, list | Mapping) else str(value)[:20]


def layout_of(names: list[str], known: tuple[Layout, ...]) -> Layout:
    """The layout whose mark one of ``names`` carries. Raises ``ConfigError`` if there is none."""
    for layout in known:
        if any(re.search(layout.mark, name) for name in names):
            return layout
    for pattern, title in _REFUSED.items():
        if found := next((name for name in names if re.search(pattern, name)), None):
            raise ConfigError(f"source is a checkpoint of {title} (it has {found}); allowed: BERT")
    shown = ", ".join(names[:3]) or "none"
    raise ConfigError(
        f"source has no tensor that a BERT is known by; its {len(names)} names begin with {shown}; allowed: "
        + ", ".join(layout.title for layout in known)
    )


def read(path: Path) -> tuple[Renamed, dict[str, Any]]:
    """The weights of a PyTorch file by their names in ``transformers``, and its whole content."""
    content = load(path)
    tensors, others = state_dict_of(content)
    layout = layout_of(list(tensors), LAYOUTS)
    renamed = nvidia.read(content, tensors) if layout is NVIDIA else rename(tensors, layout)
    renamed.left_out += [name for name in others if layout is not NVIDIA or not name.startswith("master params")]
    return renamed, content
