"""Hyperball: the weights of a layer keep their norm, and every update has a fixed length relative to it.

Provenance: Wen, Dang, Lyu, Ma and Liang, "Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball
Optimization" (arXiv 2606.16899, 2026). Written from its equation; u is the update of another optimizer:

    w <- R N(w - lr R N(u))        N(x) = x / ||x||        R: ||w|| before the first update

It replaces weight decay. R / ||u|| is LAMB's trust ratio, with the norm of the initial weights. If ||u|| is 0 the
weights stay; a layer of zeros (R = 0) stays zero.
"""

import torch
from torch import Tensor

from bert_pretrain.optim.joined import Joined
from bert_pretrain.optim.layerwise import norm_of
from bert_pretrain.optim.norms import layer_norms


def radius_of(param: Tensor) -> Tensor:
    """R as a state entry: 0-d float64."""
    return layer_norms([param])[0].clone()


def rotate(w: Tensor, u: Tensor, lr: float, radius: float) -> tuple[float, float, float]:
    """Update one layer; returns the trust ratio, ||w|| before the update and ||u||."""
    w_norm, u_norm = norm_of(w), norm_of(u)
    ratio = radius / u_norm if u_norm else 0.0
    w.sub_(u * (lr * ratio))
    length = norm_of(w)
    w.mul_(radius / length if length else 1.0)
    return ratio, w_norm, u_norm


def rotate_all(params: list[Tensor], updates: Joined, lr: Tensor, radii: list[Tensor], skipped: Tensor) -> Tensor:
    """Update all layers, which are matrices; returns the same numbers as rows, (3, layers)."""
    radius = torch.stack(radii)
    w_norms = layer_norms(params)
    u_norms = layer_norms(updates.each)
    ratios = torch.where(u_norms == 0, 0.0, radius / u_norms)
    updates.scale_(-lr * ratios)
    updates.add_to(params, skipped)
    lengths = layer_norms(params)
    factors = torch.where(skipped | (lengths == 0), 1.0, radius / lengths).to(params[0].dtype)
    for param, factor in zip(params, factors.unbind(), strict=True):
        param.mul_(factor)
    return torch.stack([ratios, w_norms, u_norms])
