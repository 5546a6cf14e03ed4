"""NVLAMB and other optimizers, each an ordinary ``torch.optim.Optimizer``. They need only torch and numpy.

The classes are imported on first use, so that ``bert_pretrain.optim.options`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_pretrain.optim.lars import LARS
    from bert_pretrain.optim.nvlamb import NVLamb
    from bert_pretrain.optim.sharded import ShardedOptimizer
    from bert_pretrain.optim.torch_fused import SGD, Adam, AdamW

__all__ = ["LARS", "SGD", "Adam", "AdamW", "NVLamb", "ShardedOptimizer"]

_MODULES = {
    "LARS": "lars",
    "SGD": "torch_fused",
    "Adam": "torch_fused",
    "AdamW": "torch_fused",
    "NVLamb": "nvlamb",
    "ShardedOptimizer": "sharded",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
