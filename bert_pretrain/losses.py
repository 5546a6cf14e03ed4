"""Sums of cross entropies, and how many guesses were right.

The gradient of a cross entropy is softmax minus one-hot. torch computes logarithms of the softmax on the way there and
takes every exponential twice; over a vocabulary that is a tenth of a small model's step. ``fast_sums`` takes them
once, keeps them, and scales them in the backward.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the cross entropies in nats, and the number of right guesses, both 0-d, by torch's own loss.

    ``logits`` (N, C); ``labels`` (N,) int64, negative where nothing is predicted. Computed in float32 or better. A
    guess is right where no logit is above that of the label.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    loss = F.cross_entropy(logits, labels, reduction="sum")
    with torch.no_grad():
        # amax vectorises on CPU where argmax does not; equal to the largest is the most likely word.
        right = logits.gather(1, labels.clamp(min=0)[:, None]).squeeze(1) == logits.amax(1)
    return loss, (right & (labels >= 0)).sum()


def fast_sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same as ``sums``, with one exponential a logit."""
    return _FastSums.apply(logits, labels)


class _FastSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        predicted, index = labels >= 0, labels.clamp(min=0)[:, None]
        wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        powers = wide - wide.amax(1, keepdim=True)  # at most 0: the exponentials cannot overflow
        own = powers.gather(1, index)
        totals = powers.exp_().sum(1, keepdim=True)
        loss = torch.where(predicted, (totals.log() - own).squeeze(1), 0.0).sum()
        right = ((own.squeeze(1) == 0) & predicted).sum()
        ctx.save_for_backward(powers, totals, predicted[:, None], index)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        powers, totals, predicted, index = ctx.saved_tensors
        gradient = powers * torch.where(predicted, gradients[0] / totals, 0.0)
        gradient.scatter_add_(1, index, torch.where(predicted, -gradients[0], 0.0).to(gradient.dtype))
        return gradient.to(ctx.dtype), None
