"""NVLAMB with the CUDA kernel of NVIDIA's FusedLAMB, if apex is installed with its CUDA extensions.

Only apex's kernel ``multi_tensor_lamb`` is used, not its optimizer class, so that state and options are those of
``NVLamb``. How the kernel differs from the equations, and what is done about it:

- It overwrites the gradients with the update, so it gets copies: float32, unscaled and pre-normalised. Thus all three
  forms of (2) are exact, and gradients may have any type. Its own clipping is off: it gets a norm of 0.
- It never skips an update, and takes t and the learning rate from the host: the host waits for the device once a step.
- It takes one t for a list of layers: layers with the same t are passed together.
- It computes 1 - b and the bias corrections from float32 betas: 1 - 0.999 is off by 1.3e-5, the update by about 1e-5.
- It returns no norms: they are computed here, for ``layer_report`` and ``nonfinite_state``.

This moves 72 bytes per parameter: 48 in the kernel, 4 for ||G||, 8 to copy, 12 for the norms. (FusedLAMB itself: 52.)
phi, bounds of the ratio and float64 are not supported and are refused.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.optim.layers import Layers, Outcome, Rules, Work
from bert_pretrain.optim.masters import copy_masters
from bert_pretrain.optim.norms import layer_norms

HAS_APEX = find_spec("apex") is not None and find_spec("amp_C") is not None
_NO_LIMIT = 1.0  # the norm that the kernel clips to; it gets 0 as the gradient norm, which is never above
_DECOUPLED = 1  # the kernel's mode in which the decay is added to the update, as in (5)


def check_apex(rules: Rules, params: Sequence[Tensor]) -> None:
    """Raise ``ConfigError`` if apex does not support the options or parameters, or is not installed."""
    rule = rules.trust_ratio
    bounds = (rule.phi_min, rule.phi_max, rule.ratio_min, rule.ratio_max)
    names = "phi_min, phi_max, ratio_min, ratio_max"
    require(bounds == (None,) * 4, "kernel", "apex", f"foreach or reference with {names} = {bounds}")
    for i, param in enumerate(params):
        where = f"parameter {i} is {param.dtype} on {param.device}, {param.numel()} elements"
        fits = param.device.type == "cuda" and param.dtype != torch.float64 and param.numel() < 2**31
        fits = fits and param.is_contiguous()
        require(fits, "kernel", "apex", f"foreach or reference, where {where} (apex: contiguous, cuda, 16 or 32 bits)")
    if not HAS_APEX:
        raise ConfigError(
            "kernel is 'apex', but apex with its CUDA extensions (amp_C) is not installed; "
            "install it, or use kernel=auto"
        )


def apex_step(work: Work) -> Outcome:
    """Update all layers. Waits for the device once. Raises ``ConfigError`` as ``check_apex``, for added groups too."""
    check_apex(work.rules, [weight for layers in work.parts for weight in layers.weights])
    decision = work.decide()
    numbers = iter(_read_from_device(work, decision.skipped))
    if next(numbers):
        return Outcome.of_skipped(work, decision)
    norms, finite = [], []
    for layers in work.parts:
        rate, *steps = islice(numbers, 1 + len(layers.steps))
        updates = _scaled(layers, decision.grad_factor.to(torch.float32))
        weight_norms = layer_norms(layers.weights)
        for step in sorted(set(steps)):
            run = [i for i, of_layer in enumerate(steps) if of_layer == step]
            _launch(layers, run, updates, rate, int(step) + 1, work)
        torch._foreach_add_(layers.steps, 1.0)
        copy_masters(layers)
        both = torch.stack([weight_norms, layer_norms(updates)])  # the kernel has overwritten the gradients with u
        norms.append(both)
        finite.append(torch.isfinite(both).all() & torch.isfinite(layer_norms(layers.exp_avg_sqs)).all())
    weight_norms, update_norms = torch.cat(norms, 1)
    return Outcome(decision, ~torch.stack(finite).all(), weight_norms, update_norms)


def _read_from_device(work: Work, skipped: Tensor) -> list[float]:
    """Whether to skip and, for every part, its learning rate and step counts, in one device-to-host copy."""
    numbers = [skipped.double().view(1)]
    for layers in work.parts:
        rate = torch.as_tensor(layers.group["lr"], dtype=torch.float64, device=work.device)
        numbers += [rate.view(1), torch.stack(layers.steps).double()]
    values: list[float] = torch.cat(numbers).tolist()
    return values


def _scaled(layers: Layers, factor: Tensor) -> list[Tensor]:
    """Equations (1) and (2): contiguous float32 copies of the gradients, times ``factor``."""
    if all(grad.dtype == torch.float32 and grad.is_contiguous() for grad in layers.grads):
        return list(torch._foreach_mul(layers.grads, factor))
    updates = [torch.empty_like(weight) for weight in layers.weights]
    torch._foreach_copy_(updates, layers.grads)
    torch._foreach_mul_(updates, factor)
    return updates


def _launch(layers: Layers, run: list[int], updates: list[Tensor], rate: float, t: int, work: Work) -> None:
    """Equations (3) to (7) for the layers of ``run``, all at their ``t``-th update."""
    columns: tuple[list[Tensor], ...] = (updates, layers.weights, layers.exp_avgs, layers.exp_avg_sqs)
    group: dict[str, Any] = layers.group
    beta1, beta2 = group["betas"]
    import_module("apex.multi_tensor_apply").multi_tensor_applier(
        import_module("amp_C").multi_tensor_lamb,
        torch.zeros(1, dtype=torch.int32, device=work.device),  # the overflow flag, which this kernel does not read
        [[column[i] for i in run] for column in columns],
        rate,
        beta1,
        beta2,
        group["eps"],
        t,
        int(work.rules.bias_correction),
        group["weight_decay"],
        1,  # m takes (1 - b1) g
        _DECOUPLED,
        torch.zeros(1, dtype=torch.float32, device=work.device),
        _NO_LIMIT,
        work.rules.trust_ratio.layers == "all",
    )
