"""Vocabulary projection and cross entropy on CPU, with one pass over the logits.

torch makes about ten passes over the largest tensor of the step: bias, log-softmax, largest logit, zeroing and filling
the gradient, exponentials again. Here one loop handles a row while it is in the cache and overwrites the logits with
the gradient of the loss: the softmax, minus one at the label.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bert_pretrain.jit import cached_njit
from bert_pretrain.threads import parallel_for

_ROWS = 16  # least rows for a thread

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # ln 2 in two parts, the first exact
_TO_INTEGER = np.float32(1.5 * 2**23)  # adding and subtracting it rounds to an integer
_SMALLEST = np.float32(-87.0)  # e to this is still a normal number
_TAYLOR = tuple(np.float32(1 / math.factorial(n)) for n in range(2, 8))


def vocabulary_loss(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of ``x @ weight.T + bias`` against ``labels``, and the number of correct predictions.

    ``x`` (M, H), ``weight`` (V, H), ``bias`` (V,), all float32 on CPU; ``labels`` (M,) int64, negative for rows to
    ignore. Gradients flow to the first three.
    """
    loss, correct = _VocabularyLoss.apply(x, weight, bias, labels)
    return loss, correct


def supported(x: Tensor, weight: Tensor) -> bool:
    """Whether ``vocabulary_loss`` can run on these: float32 on CPU, without autocast and torch.compile."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return x.dtype == weight.dtype == torch.float32


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = x @ weight.T
        losses, right = torch.empty(len(x), dtype=torch.float64), torch.empty(len(x), dtype=torch.int64)
        z, b, of_row = logits.numpy(), bias.detach().numpy(), (labels.numpy(), losses.numpy(), right.numpy())
        parallel_for(lambda start, stop: _loss_rows(z, b, *of_row, start, stop), len(x), _ROWS, torch.get_num_threads())
        correct = right.sum()
        ctx.save_for_backward(x, weight, logits)  # the logits have been overwritten with their gradient
        ctx.mark_non_differentiable(correct)
        return losses.sum().float(), correct

    @staticmethod
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (x, weight, gradient), needed = ctx.saved_tensors, ctx.needs_input_grad
        of_x = (gradient @ weight) * factor if needed[0] else None
        of_weight = gradient.T @ (x * factor) if needed[1] else None  # not where the embeddings are frozen
        return of_x, of_weight, gradient.sum(0) * factor if needed[2] else None, None


@cached_njit()
def _loss_rows(
    logits: np.ndarray,
    bias: np.ndarray,
    labels: np.ndarray,
    losses: np.ndarray,
    right: np.ndarray,
    start: int,
    stop: int,
) -> None:
    """Overwrite rows ``start`` to ``stop`` of ``logits`` (M, V), given without bias, with the gradient of the loss."""
    for i in range(start, stop):
        row, label = logits[i], labels[i]
        if label < 0:
            row[:] = 0
            losses[i], right[i] = 0, 0
            continue
        largest = _add(row, bias)
        at_label = row[label]
        _exponentials(row, largest)
        total = _sum(row)
        share = np.float32(1 / total)
        for j in range(len(row)):
            row[j] *= share
        row[label] -= np.float32(1)
        losses[i], right[i] = np.log(total) + largest - at_label, at_label == largest


@cached_njit(fastmath={"reassoc", "nnan", "nsz"})
def _add(row: np.ndarray, bias: np.ndarray) -> np.float32:
    """Add ``bias`` to ``row`` in place and return the maximum. It may miss a NaN, which makes the loss NaN anyway."""
    largest = np.float32(-np.inf)
    for j in range(len(row)):
        row[j] += bias[j]
        largest = max(largest, row[j])
    return largest


@cached_njit(fastmath={"contract"})
def _exponentials(row: np.ndarray, largest: np.float32) -> None:
    """Replace each value with e^(value - largest), relative error 2e-7. Operations must not be reordered here."""
    for j in range(len(row)):
        x = row[j] - largest
        x = _SMALLEST if x < _SMALLEST else x
        n = (x * _LOG2_E + _TO_INTEGER) - _TO_INTEGER
        r = x - n * _LN2_HIGH - n * _LN2_LOW  # at most ln 2 / 2
        s = _TAYLOR[5]
        s = s * r + _TAYLOR[4]
        s = s * r + _TAYLOR[3]
        s = s * r + _TAYLOR[2]
        s = s * r + _TAYLOR[1]
        s = s * r + _TAYLOR[0]
        power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)  # 2^n
        row[j] = (s * r * r + r + np.float32(1)) * power


@cached_njit(fastmath={"reassoc"})
def _sum(row: np.ndarray) -> np.float32:
    total = np.float32(0)
    for j in range(len(row)):
        total += row[j]
    return total
