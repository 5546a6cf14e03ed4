"""NVLAMB and other optimizers, each an ordinary ``torch.optim.Optimizer``. They need only torch and numpy.

The classes are imported on first use, so that ``bert_pretrain.optim.options`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_pretrain.optim.adamh import AdamH
    from bert_pretrain.optim.lars import LARS
    from bert_pretrain.optim.muon import Muon
    from bert_pretrain.optim.nvlamb import NVLamb
    from bert_pretrain.optim.paired import PairedOptimizer
    from bert_pretrain.optim.schedule_free import ScheduleFreeAdamW
    from bert_pretrain.optim.sharded import ShardedOptimizer
    from bert_pretrain.optim.torch_fused import SGD, Adam, AdamW

__all__ = [
    "LARS",
    "SGD",
    "Adam",
    "AdamH",
    "AdamW",
    "Muon",
    "NVLamb",
    "PairedOptimizer",
    "ScheduleFreeAdamW",
    "ShardedOptimizer",
]

_MODULES = {
    "AdamH": "adamh",
    "LARS": "lars",
    "SGD": "torch_fused",
    "Adam": "torch_fused",
    "AdamW": "torch_fused",
    "Muon": "muon",
    "NVLamb": "nvlamb",
    "PairedOptimizer": "paired",
    "ScheduleFreeAdamW": "schedule_free",
    "ShardedOptimizer": "sharded",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
