"""NVLAMB on CPU, compiled by Numba: the equations of ``nvlamb`` in two passes over memory, on its own threads.

Bytes moved per parameter, float32: 4 to measure ``||G||``; 24 to advance a layer (read g, m, v, w; write m, v) and sum
||w||^2 and ||u||^2; 16 to apply the update (read m, v, w; write w), since u is computed again and not stored. A layer
that fits into the cache is applied right after it was advanced, from back to front, so most of the 16 bytes come from
the cache: 28 at best, 44 at worst. torch's gradient clipping and fused AdamW together move 40.

Threads wait for each other two or three times a step (``threads`` explains why they are not OpenMP's). Layers above a
share of the model are cut into tasks for all threads; each other layer is updated by one thread, the largest first.

The results differ from the reference by rounding only and are bitwise the same with any number of threads.
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bert_pretrain.errors import require
from bert_pretrain.optim.layers import Decision, Layers, Outcome, Rules, Work, decide
from bert_pretrain.optim.masters import copy_masters
from bert_pretrain.optim.usable import check_addresses, import_error, require_import, warn_of_fallback
from bert_pretrain.threads import Threads

HAS_NUMBA = find_spec("numba") is not None
PIECE = 1 << 18
"""Most elements of a task of a layer that is cut, and about the elements of a task of several small layers."""

_LOOPS = "bert_pretrain.optim.nvlamb_cpu_loops"

Task = tuple[int, int]
"""A range of pieces: the first, and one past the last."""


@dataclass
class Plan:
    """How layers of ``sizes`` elements are cut into tasks for ``threads``."""

    sizes: list[int]
    threads: Threads
    pieces: np.ndarray = field(init=False)
    """(P, 5) int64: layer, first element, number of elements, and where the layer's pieces begin and end. The pieces
    of a layer are consecutive; those of shared layers come first."""
    shared: list[Task] = field(init=False)
    """One piece each, of layers that are too large for one thread."""
    whole: list[Task] = field(init=False)
    """One or several layers each, the largest first."""

    def __post_init__(self) -> None:
        limit = max(PIECE, sum(self.sizes) // (2 * self.threads.number)) if self.threads.number > 1 else sys.maxsize
        order = sorted(range(len(self.sizes)), key=lambda layer: -self.sizes[layer])
        rows: list[tuple[int, ...]] = []
        self.shared, self.whole = [], []
        task_elements = PIECE
        for layer in order:
            size, begin = self.sizes[layer], len(rows)
            end = begin + -(-size // PIECE)
            rows += [(layer, at, min(PIECE, size - at), begin, end) for at in range(0, size, PIECE)]
            if size > limit:
                self.shared += [(row, row + 1) for row in range(begin, end)]
            elif task_elements + size > PIECE:
                self.whole.append((begin, end))
                task_elements = size
            else:
                self.whole[-1] = (self.whole[-1][0], end)
                task_elements += size
        self.pieces = np.array(rows, dtype=np.int64)


def fused_step(work: Work) -> Outcome:
    """Update all layers. Raises ``ConfigError`` if a layer is float64 or its weights are not contiguous."""
    require(HAS_NUMBA, "kernel", "fused", "foreach or auto where numba is not installed")
    require_import(_LOOPS, "numba")
    import bert_pretrain.optim.nvlamb_cpu_loops as loops  # imports numba; importing the optimizer needs only torch

    names = ("weights", "grads", "exp_avgs", "exp_avg_sqs")
    weights, grads, *moments = ([x for part in work.parts for x in getattr(part, name)] for name in names)
    fits = all(map(supported, weights))
    require(fits, "kernel", "fused", "foreach or auto where a layer is float64 or not contiguous")
    plan = _plan(work.workspace, [weight.numel() for weight in weights])
    # Gradients of another type or layout are copied; the copies live until the end of the step.
    grads = [grad.to(torch.float32).contiguous() for grad in grads]
    columns = (weights, grads, *moments)
    addresses = np.array([[x.data_ptr() for x in column] for column in columns], dtype=np.int64).T.copy()
    check_addresses(addresses[:, (0, 2, 3)])
    sums = np.zeros((len(plan.pieces), 4))  # of g^2, w^2, u^2; the last is NaN if a v is not finite
    rules = work.rules
    if work.shared_norm:  # ||G|| includes other ranks' layers, summed in the same order on all ranks
        decision = work.decide()
    else:
        everything = plan.shared + plan.whole
        plan.threads.run([partial(loops.measure, *task, plan.pieces, addresses, sums) for task in everything])
        norm = torch.tensor(sums[:, 0].sum()).sqrt()
        decision = decide(norm, rules.pre_normalization, rules.max_grad_norm, work.grad_scale, work.found_inf)
    if bool(decision.skipped):
        return Outcome.of_skipped(work, decision)
    numbers = np.concatenate([_numbers(part, rules, decision) for part in work.parts])
    arrays = (plan.pieces, addresses, numbers, sums)
    plan.threads.run([partial(loops.advance, *task, *arrays) for task in plan.shared])
    descents = [partial(loops.descend, *task, *arrays) for task in plan.shared]
    plan.threads.run([partial(loops.update, *task, *arrays) for task in plan.whole] + descents)
    for part in work.parts:
        torch._foreach_add_(part.steps, 1.0)
        copy_masters(part)
    of_layers = torch.zeros(len(weights), 4, dtype=torch.float64)
    of_layers.index_add_(0, torch.from_numpy(plan.pieces[:, 0]), torch.from_numpy(sums))
    norms = of_layers[:, 1:3].sqrt()
    return Outcome(decision, ~torch.isfinite(of_layers).all(), norms[:, 0], norms[:, 1])


def supported(weights: Tensor) -> bool:
    """Whether this kernel can update ``weights`` (for bf16 and fp16 parameters: their float32 masters)."""
    return HAS_NUMBA and weights.device.type == "cpu" and weights.dtype != torch.float64 and weights.is_contiguous()


def works(_device: torch.device) -> bool:
    """Whether numba can be used; if it is installed and broken, says so once."""
    problem = import_error(_LOOPS)
    if problem:
        warn_of_fallback("numba", problem)
    return not problem


def _plan(workspace: dict[str, Any], sizes: list[int]) -> Plan:
    """The kept plan, or a new one if the layers or torch's number of threads have changed."""
    kept: Plan | None = workspace.get("cpu plan")
    number = torch.get_num_threads()
    if kept is None or kept.sizes != sizes or kept.threads.number != number:
        threads = kept.threads if kept is not None and kept.threads.number == number else Threads(number)
        kept = workspace["cpu plan"] = Plan(sizes, threads)
    return kept


def _numbers(layers: Layers, rules: Rules, decision: Decision) -> np.ndarray:
    """The scalars of each layer, in the columns that ``nvlamb_cpu_loops`` names: (layers, 12) float64."""
    import bert_pretrain.optim.nvlamb_cpu_loops as loops

    group, trust_ratio = layers.group, rules.trust_ratio
    t = torch.stack(layers.steps).double().numpy() + 1
    beta1, beta2 = group["betas"]
    root2 = np.sqrt(1 - beta2**t) if rules.bias_correction else np.ones_like(t)
    numbers = np.empty((len(t), 12))
    numbers[:, loops.FACTOR] = decision.grad_factor.item()
    numbers[:, loops.BETA1], numbers[:, loops.BETA2] = beta1, beta2
    numbers[:, loops.K] = root2 / (1 - beta1**t) if rules.bias_correction else 1.0
    numbers[:, loops.E] = group["eps"] * root2
    numbers[:, loops.DECAY] = group["weight_decay"]
    numbers[:, loops.LR] = float(group["lr"])
    numbers[:, loops.ADAPTED] = trust_ratio.applies(group["weight_decay"])
    numbers[:, loops.PHI_MIN :] = trust_ratio.bounds(group["weight_decay"])
    return numbers
