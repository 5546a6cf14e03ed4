"""A layer and its gradients, the same each time, and the optimizers and kernels that tests run on it."""

import torch

from bert_pretrain.optim import LARS, SGD, Adam, AdamW, NVLamb

FAMILY = [NVLamb, LARS, AdamW, Adam, SGD]

KERNELS = ["reference", "foreach", "fused", "auto"]


def parameter(*shape, dtype=torch.float32):
    return torch.nn.Parameter(torch.randn(*(shape or (6, 4)), generator=torch.Generator().manual_seed(0)).to(dtype))


def gradient(param, seed=1):
    return torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
