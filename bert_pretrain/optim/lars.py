"""LARS and LARC: momentum with a learning rate for each layer.

Provenance: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks" (arXiv 1708.03888, 2017),
algorithm 1; LARC is NVIDIA's variant of it in apex (``apex.parallel.LARC`` around SGD). Written from those formulas.

One update of a layer with weights w, gradient g, momentum buffer b:

    (1)  r = eta ||w|| / (||g|| + decay ||w|| + eps)     1 if ||w|| or ||g|| is 0
    (2)  LARS:  b <- momentum b + lr r (g + decay w)                    w <- w - b
         LARC:  b <- momentum b + min(r / lr, 1) (g + decay w)          w <- w - lr b

So ``clip=True`` takes the smaller of the layer's rate and lr and applies the learning rate outside the buffer, like
apex. Differences: if ||g|| is 0, so that r = 1, the decay is still applied (apex drops it). ``trust_ratio="decayed"``
leaves layers without decay (biases, LayerNorm) at r = 1, as most codes do; the paper adapts every layer.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.optim.joined import Joined
from bert_pretrain.optim.layers import on_device
from bert_pretrain.optim.layerwise import LayerwiseOptimizer, norm_of
from bert_pretrain.optim.norms import layer_norms
from bert_pretrain.optim.ranges import check_ranges
from bert_pretrain.optim.state import Group, State, StateFormat, States, Tensors


class LARS(LayerwiseOptimizer):
    """LARS, and LARC with ``clip=True``.

    Args:
        params, lr, weight_decay: as for ``NVLamb``; parameters in float32 or float64.
        trust_coefficient: eta, above 0.
        trust_ratio: ``all`` | ``decayed``: the layers that (1) applies to; r = 1 for the others (LARC: min(1 / lr, 1),
            so plain momentum if lr is at most 1).

    ``layer_report`` has the layer's rate, r or for LARC min(r, lr), as its trust ratio; the third row is ||g|| +
    decay ||w|| + eps, the denominator of (1).
    """

    _kept = (*LayerwiseOptimizer._kept, "trust_coefficient", "clip", "trust_ratio")
    _format = StateFormat(("momentum_buffer",), counts_steps=False)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        clip: bool = False,
        trust_ratio: str = "all",
        kernel: str = "foreach",
    ) -> None:
        check_ranges(trust_coefficient=trust_coefficient, trust_ratio=trust_ratio)
        self.trust_coefficient = trust_coefficient
        self.clip = clip
        self.trust_ratio = trust_ratio
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, defaults, kernel=kernel)

    def _applies(self, decay: float) -> bool:
        """Whether (1) applies to layers with this weight decay."""
        return self.trust_ratio == "all" or decay != 0

    def _update(self, group: Group, w: Tensor, g: Tensor, own: State) -> tuple[float, float, float]:
        lr = float(group["lr"])
        momentum = group["momentum"]
        decay = group["weight_decay"]
        b = own["momentum_buffer"]
        w_norm, g_norm = norm_of(w), norm_of(g)
        length = g_norm + decay * w_norm + group["eps"]
        adapted = self._applies(decay) and w_norm != 0 and g_norm != 0
        r = self.trust_coefficient * w_norm / length if adapted else 1.0  # (1)
        if self.clip:  # (2), LARC
            b.mul_(momentum).add_(g + decay * w, alpha=1.0 if r >= lr else r / lr)
            w.sub_(lr * b)
            return min(r, lr), w_norm, length
        b.mul_(momentum).add_(g + decay * w, alpha=lr * r)  # (2), LARS
        w.sub_(b)
        return r, w_norm, length

    def _update_all(self, group: Group, params: Tensors, grads: Joined, states: States, skipped: Tensor) -> Tensor:
        decay = group["weight_decay"]
        lr = on_device(group["lr"], skipped.device)
        dtype = params[0].dtype
        buffers = [own["momentum_buffer"] for own in states]
        weight_norms, grad_norms = layer_norms(params), layer_norms(grads.each)
        length = grad_norms + decay * weight_norms + group["eps"]
        plain = (weight_norms == 0) | (grad_norms == 0)
        if not self._applies(decay):
            plain = torch.ones_like(plain)
        ratio = torch.where(plain, 1.0, self.trust_coefficient * weight_norms / length)
        inside, outside = (torch.clamp(ratio / lr, max=1.0), lr) if self.clip else (lr * ratio, torch.ones_like(lr))
        rate = torch.minimum(ratio, lr) if self.clip else ratio
        if decay:
            torch._foreach_add_(grads.each, params, alpha=decay)
        grads.scale_(inside)
        momentum = on_device(group["momentum"], skipped.device).masked_fill(skipped, 1.0)
        torch._foreach_mul_(buffers, momentum.to(dtype))
        grads.add_to(buffers, skipped)
        grads.copy_(buffers).flat.mul_(-outside.to(dtype))
        grads.add_to(params, skipped)
        return torch.stack([rate, weight_norms, length])
