"""The tables that the Triton kernels of NVLAMB read: where each layer lies, its chunks and its options.

All of it is computed on the host from sizes, addresses and options. A table is copied to the device only when its
content changes. Nothing here waits for the device or imports triton.
"""

import math
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bert_pretrain.errors import require
from bert_pretrain.optim.layers import Work, upload
from bert_pretrain.optim.usable import check_addresses

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
LAYER_FIELDS = (
    *("grad", "weight", "exp_avg", "exp_avg_sq", "step", "copy"),  # addresses; copy: 0 if there is none
    *("size", "aligned", "group", "first", "count", "place"),  # first: number of its first chunk of ``count``
)
"""A row of the layer table, all int64. ``place`` is the layer's position among all layers of the step."""
GROUP_FIELDS = (
    *("lr_at", "lr"),  # lr_at: address of a float64 rate, as an integer; 0: the rate is lr
    *("keep1", "add1", "keep2", "add2", "log1", "log2"),  # b1, 1 - b1, b2, 1 - b2, log b1, log b2
    *("eps", "decay", "adapted", "phi_min", "phi_max", "ratio_min", "ratio_max", "max_norm"),
)
"""A row of the group table, all float64 but ``lr_at``. log b = -inf turns bias correction off: 1 - b^t = 1."""
NORM_PROGRAMS = 1024
"""Largest number of programs of a norm kernel; each writes one partial sum."""


@dataclass
class Columns:
    """All layers of a step in the order of the parts, as parallel lists like ``Layers``. Gradients are contiguous."""

    params: list[Tensor]
    grads: list[Tensor]
    weights: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]

    @classmethod
    def of(cls, work: Work) -> "Columns":
        """Concatenate the parts; copy gradients whose layout or type the kernels cannot read."""
        columns = cls(*([x for part in work.parts for x in getattr(part, field.name)] for field in fields(cls)))
        columns.grads = [grad.contiguous() for grad in columns.grads]
        columns.grads = [grad if grad.dtype in TYPES else grad.to(torch.float32) for grad in columns.grads]
        return columns

    def signature(self) -> tuple[list[Any], ...]:
        """What a plan depends on besides the lengths of the parts; cheap enough to compute at every step."""
        params, weights = self.params, self.weights
        return (
            [weight.numel() for weight in weights],
            [grad.dtype for grad in self.grads],
            [param.dtype for param in params],
            [weight.dtype for weight in weights],
            [param.is_contiguous() for param in params],
            [weight.is_contiguous() for weight in weights],
        )

    def addresses(self) -> np.ndarray:
        """int64 (6, layers), in the order of ``LAYER_FIELDS``; ``copy`` is the address of the parameter."""
        ordered = (self.grads, self.weights, self.exp_avgs, self.exp_avg_sqs, self.steps, self.params)
        return np.array([[tensor.data_ptr() for tensor in column] for column in ordered], dtype=np.int64)


@dataclass
class Launch:
    """The chunks of the layers of one kind: one type of gradient and of low-precision copy."""

    gradient_type: str
    copy_type: str
    """``none`` for float32 parameters."""
    first: int
    """Number of its first chunk."""
    chunks: int
    norm_programs: int
    slot: int
    """Index of the first partial sum of its norm kernel."""


@dataclass
class Plan:
    """What follows from the sizes of the layers: the launches, and buffers that are kept between steps."""

    key: object
    launches: list[Launch]
    order: np.ndarray
    """The layers sorted by kind, as positions in ``Columns``: the order of the tables."""
    fixed: np.ndarray
    """int64 (layers, fields): rows of ``LAYER_FIELDS`` without addresses and ``aligned``; ``copy`` is 1 or 0."""
    strided: list[int]
    """Positions of the bf16 and fp16 parameters that are not contiguous: torch copies their masters to them."""
    layer_of: Tensor
    partials: Tensor
    sums: Tensor
    kept: Tensor
    tables: dict[str, tuple[np.ndarray, Tensor]] = field(default_factory=dict)
    """Each table on the host and on the device."""
    rates: list[Tensor] = field(default_factory=list)
    """Learning rates that the last step read on the device."""

    def table(self, name: str, content: np.ndarray, device: torch.device) -> Tensor:
        """Return ``content`` on the device; copy it only if it has changed.

        Compared as integers: as floats, addresses are denormal numbers, all equal where those are flushed to zero.
        """
        kept = self.tables.get(name)
        if kept is None or not np.array_equal(kept[0].view(np.int64), content.view(np.int64)):
            self.tables[name] = content, upload(content, device)
        return self.tables[name][1]


def plan_for(work: Work, columns: Columns, chunk: int) -> Plan:
    """Return the kept plan, or a new one if the layers have changed. ``chunk``: elements of a chunk.

    Raises ``ConfigError`` for float64 layers and for weights that are not contiguous.
    """
    key = (chunk, [len(part.params) for part in work.parts], columns.signature())
    kept: Plan | None = work.workspace.get("triton")
    if kept is not None and kept.key == key:
        return kept
    for tensor in (*columns.weights, *columns.exp_avgs, *columns.exp_avg_sqs):
        fits = tensor.dtype == torch.float32 and tensor.is_contiguous()
        require(fits, "kernel", "fused", "foreach or auto where a layer is float64 or not contiguous")
    low = [param is not weight for param, weight in zip(columns.params, columns.weights, strict=True)]
    copied = [is_low and param.is_contiguous() for is_low, param in zip(low, columns.params, strict=True)]
    kinds = [
        (TYPES[grad.dtype], TYPES[param.dtype] if has_copy else "none")
        for grad, param, has_copy in zip(columns.grads, columns.params, copied, strict=True)
    ]
    order = sorted(range(len(kinds)), key=kinds.__getitem__)
    fixed = np.zeros((len(order), len(LAYER_FIELDS)), dtype=np.int64)
    of = dict(zip(LAYER_FIELDS, fixed.T, strict=True))
    of["copy"][:] = np.array(copied)[order]
    of["size"][:] = [columns.weights[i].numel() for i in order]
    of["group"][:] = np.repeat(np.arange(len(work.parts)), [len(part.params) for part in work.parts])[order]
    of["count"][:] = -(-of["size"] // chunk)
    of["first"][1:] = np.cumsum(of["count"])[:-1]
    of["place"][:] = order
    first = [*of["first"].tolist(), int(of["count"].sum())]
    launches = _launches([kinds[i] for i in order], first)
    options: dict[str, Any] = {"dtype": torch.float64, "device": work.device}
    plan = work.workspace["triton"] = Plan(
        key,
        launches,
        np.array(order),
        fixed,
        [i for i, is_low in enumerate(low) if is_low and not copied[i]],
        layer_of=upload(np.repeat(np.arange(len(order), dtype=np.int32), of["count"]), work.device),
        partials=torch.empty(launches[-1].slot + launches[-1].norm_programs, **options),
        sums=torch.empty(3, first[-1], **options),
        kept=torch.empty(len(order), 3, **options),
    )
    return plan


def _launches(kinds: list[tuple[str, str]], first: list[int]) -> list[Launch]:
    """One launch for each kind. ``first``: number of the first chunk of each layer, and the number of all chunks."""
    launches: list[Launch] = []
    starts = [i for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
    slot = 0
    for i, j in pairwise([*starts, len(kinds)]):
        chunks = first[j] - first[i]
        norm_programs = min(chunks, NORM_PROGRAMS)
        launches.append(Launch(*kinds[i], first[i], chunks, norm_programs, slot))
        slot += norm_programs
    return launches


def layer_table(work: Work, columns: Columns, plan: Plan) -> Tensor:
    """Return the rows of ``LAYER_FIELDS`` on the device."""
    content = plan.fixed.copy()
    addresses = columns.addresses()[:, plan.order].T
    check_addresses(addresses[:, 1:4])  # weight, exp_avg, exp_avg_sq
    addresses[:, -1] *= content[:, LAYER_FIELDS.index("copy")]
    content[:, : addresses.shape[1]] = addresses
    streamed = np.delete(addresses, LAYER_FIELDS.index("step"), axis=1)
    content[:, LAYER_FIELDS.index("aligned")] = (streamed % 16 == 0).all(1)
    return plan.table("layers", content, work.device)


def group_table(work: Work, plan: Plan) -> Tensor:
    """Return the rows of ``GROUP_FIELDS``, one per part, on the device. Learning rates on the device stay there."""
    rules, trust_ratio = work.rules, work.rules.trust_ratio
    content, plan.rates = [], []
    for layers in work.parts:
        (beta1, beta2), rate, decay = layers.group["betas"], layers.group["lr"], layers.group["weight_decay"]
        lr_at, lr = 0, 0.0
        if isinstance(rate, Tensor) and rate.device == work.device:
            plan.rates.append(rate.detach().to(torch.float64))  # must live until the kernels run
            lr_at = plan.rates[-1].data_ptr()
        else:
            lr = float(rate)
        logs = [math.log(beta) if beta > 0 and rules.bias_correction else -math.inf for beta in (beta1, beta2)]
        bits = np.array(lr_at, dtype=np.int64).view(np.float64).item()
        numbers = (beta1, 1 - beta1, beta2, 1 - beta2, *logs, layers.group["eps"], decay)
        adapted = float(trust_ratio.applies(decay))
        content.append((bits, lr, *numbers, adapted, *trust_ratio.bounds(decay), rules.max_grad_norm))
    return plan.table("groups", np.array(content), work.device)


def device_scalar(value: Tensor | float | None, default: float, work: Work) -> Tensor:
    """Return ``value`` as a tensor with one element on the device. Numbers are cached, so each is copied once."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return value.to(work.device, non_blocking=True)
    number = default if value is None else float(value)
    constants = work.workspace.setdefault("triton constants", {})
    if number not in constants:
        if len(constants) > 8:  # a loss scale that is passed as a number and changes
            constants.clear()
        constants[number] = torch.full((), number, dtype=torch.float64, device=work.device)
    return constants[number]
