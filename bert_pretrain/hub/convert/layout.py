"""What every layout says about itself, and how its tensors get the names of ``transformers``.

A layout is one file's worth of naming: who wrote such checkpoints, how to recognise one, and which of its names is
which weight. The target names are those of ``transformers``' ``BertForPreTraining``.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from bert_pretrain.errors import ConfigError

Rules = tuple[tuple[str, str], ...]
"""Pairs (pattern, replacement) for ``re.sub``, applied in order."""

LAYER_NORM: Rules = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
"""The names that LayerNorm had in TensorFlow, and in PyTorch until 2019."""
KERNEL = (r"\.kernel$", ".weight")
"""The weights of a dense layer, in TensorFlow."""
HEADLESS: Rules = ((r"^(embeddings|encoder|pooler)\.", r"bert.\1."),)
"""A bare ``BertModel`` is saved without the prefix."""
WEIGHTS = re.compile(
    r"bert\.embeddings\.((word|position|token_type)_embeddings\.weight|LayerNorm\.(weight|bias))"
    r"|bert\.encoder\.layer\.\d+\."
    r"(attention\.(self\.(query|key|value)|output\.(dense|LayerNorm))|intermediate\.dense|output\.(dense|LayerNorm))"
    r"\.(weight|bias)"
    r"|bert\.pooler\.dense\.(weight|bias)"
    r"|cls\.predictions\.(bias|transform\.(dense|LayerNorm)\.(weight|bias)|decoder\.(weight|bias))"
    r"|cls\.seq_relationship\.(weight|bias)"
)
"""The names of all weights of ``BertForPreTraining``."""


@dataclass(frozen=True)
class Layout:
    """How one family of programs names the tensors of a BERT."""

    title: str
    """In words, for messages."""
    mark: str
    """A pattern that at least one name of such a checkpoint matches."""
    rules: Rules
    skipped: str = r"(?!)"
    """Names that are no weights of the model, such as optimizer state; they are listed."""
    reshape: Callable[[str, str, Tensor], Tensor] = lambda source, target, tensor: tensor
    """From (name, target name, tensor) to the tensor as PyTorch has it."""
    gelu: str | None = None
    """What these programs compute where their configuration says ``gelu``, in ``transformers``' names; None: gelu."""


@dataclass
class Renamed:
    """A checkpoint's weights under the names of ``transformers``."""

    title: str
    weights: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    """By target name, the name in the checkpoint."""
    left_out: list[str] = field(default_factory=list)
    """What is not used, by its name in the checkpoint."""
    gelu: str | None = None
    heads: int | None = None
    """The number of attention heads, where shapes tell it."""


def new_name(name: str, rules: Rules) -> str:
    """``name`` after all ``rules``."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def rename(tensors: Mapping[str, Tensor], layout: Layout) -> Renamed:
    """Give every tensor of a checkpoint its target name. Raises ``ConfigError`` if two have the same one."""
    renamed = Renamed(layout.title, gelu=layout.gelu)
    for name, tensor in tensors.items():
        target = new_name(name, layout.rules)
        if re.search(layout.skipped, name) or not WEIGHTS.fullmatch(target):
            renamed.left_out.append(name)
            continue
        if target in renamed.weights:
            raise ConfigError(
                f"source: {renamed.origin[target]!r} and {name!r} are both the weight {target}; one checkpoint must "
                "hold one model"
            )
        renamed.weights[target] = layout.reshape(name, target, tensor)
        renamed.origin[target] = name
    return renamed
