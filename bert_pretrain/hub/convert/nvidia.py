"""``ckpt_*.pt`` of NVIDIA's DeepLearningExamples, PyTorch/LanguageModeling/BERT.

Since 2022-03 ``{model, optimizer, grad_scaler, epoch}``, before ``{model, optimizer, master params, files, epoch,
data_loader}``. ``dense_act`` is a linear layer with its activation; the vocabulary is padded to a multiple of 8. The
weights in ``model`` are fp16 where training was; ``master params`` are float32, in the optimizer's order.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.convert.layout import HEADLESS, LAYER_NORM, Layout, Renamed, rename

NVIDIA = Layout(
    title="NVIDIA DeepLearningExamples",
    mark=r"\.intermediate\.dense_act\.weight$",
    rules=((r"^(module\.)+", ""), *HEADLESS, *LAYER_NORM, (r"\.dense_act\.", ".dense.")),
)
_NO_DECAY = ("bias", "gamma", "beta", "LayerNorm")
"""Parameters whose name contains one of these are in the optimizer's second group."""


def read(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Renamed:
    """Rename ``tensors``, which are ``content["model"]``, with their float32 masters where the file has them.

    The code of 2022 computes GELU's tanh approximation under the name ``gelu``, the code before the exact function.
    """
    masters = content.get("master params")
    if masters is not None:
        order = [name for group in parameter_groups(content) for name in group]
        if len(order) != len(masters) or any(
            tensors[name].shape != master.shape for name, master in zip(order, masters, strict=True)
        ):
            raise ConfigError(
                f"source: the {len(masters)} master params do not fit the {len(order)} parameters of the optimizer; "
                "the file is not of NVIDIA's code as published"
            )
        tensors = {**tensors, **{name: master.data for name, master in zip(order, masters, strict=True)}}
        if (tied := _tied(tensors)) is not None:
            tensors = {**tensors, tied[1]: tensors[tied[0]]}
    return rename(tensors, replace(NVIDIA, gelu="gelu_pytorch_tanh") if "grad_scaler" in content else NVIDIA)


def parameter_groups(content: Mapping[str, Any]) -> list[list[str]]:
    """The names of the parameters in each group of the optimizer, in its order.

    The optimizer's state knows parameters by number only. They are the model's in the order of its modules, which is
    that of its ``state_dict``, without the decoder's weight, which is tied: first those with weight decay, then those
    without. Raises ``ConfigError`` if the file's groups are of other sizes.
    """
    tensors = content["model"]
    tied = _tied(tensors)
    names = [name for name in tensors if tied is None or name != tied[1]]
    exempt = [any(part in name for part in _NO_DECAY) for name in names]
    groups = [[name for name, free in zip(names, exempt, strict=True) if free is wanted] for wanted in (False, True)]
    found = [len(group["params"]) for group in content.get("optimizer", {}).get("param_groups", [])]
    if found != [len(group) for group in groups]:
        raise ConfigError(
            f"source: its optimizer has groups of {found} parameters, its model has {len(groups[0])} with weight decay "
            f"and {len(groups[1])} without; the moments cannot be told apart"
        )
    return groups


def _tied(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The names of the word embeddings and of the decoder's weight that is tied to them."""
    decoder = next((name for name in tensors if name.endswith("cls.predictions.decoder.weight")), None)
    words = next((name for name in tensors if name.endswith("embeddings.word_embeddings.weight")), None)
    return (words, decoder) if words is not None and decoder is not None else None
