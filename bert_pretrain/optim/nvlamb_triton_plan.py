"""What the Triton kernels of NVLAMB are told: which layer lies where, in what chunks, and under which options.

Everything here is computed on the host from sizes, addresses and options, and lies on the device in tables that are
replaced only when their contents change. Nothing waits for the device, and nothing here imports triton.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bert_pretrain.optim.layers import Work

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
LAYER_FIELDS = (
    *("grad", "weight", "exp_avg", "exp_avg_sq", "step", "copy"),  # addresses; copy: 0 without one
    *("size", "aligned", "group", "first", "count", "place"),  # first: number of its first chunk of ``count``
)
"""Of a layer, all int64. ``place`` is its position among all layers of the step."""
GROUP_FIELDS = (
    *("lr_at", "lr"),  # lr_at: address of a float64 rate, as whole number; 0: the rate is lr
    *("keep1", "add1", "keep2", "add2", "log1", "log2"),  # b1, 1 - b1, b2, 1 - b2, log b1, log b2
    *("eps", "decay", "adapted", "phi_min", "phi_max", "max_norm"),
)
"""Of a part, all float64 but ``lr_at``. log b = -inf switches bias correction off: 1 - b^t = 1."""
NORM_PROGRAMS = 1024
"""Most programs of the norm for one kind of gradient; one partial sum each."""


@dataclass
class Row:
    """A layer that the kernels update. ``grad`` is contiguous; ``copy`` is the bf16 or fp16 parameter, or None."""

    place: int
    group: int
    grad: Tensor
    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    copy: Tensor | None

    def kind(self) -> tuple[str, str]:
        """Types of the gradient and of the copy: layers of one kind share a launch."""
        return TYPES[self.grad.dtype], "none" if self.copy is None else TYPES[self.copy.dtype]

    def streamed(self) -> tuple[int, ...]:
        """Addresses of what the kernels read and write in blocks."""
        return tuple(address for i, address in enumerate(self.addresses()) if LAYER_FIELDS[i] != "step")

    def addresses(self) -> tuple[int, ...]:
        """In the order of ``LAYER_FIELDS``."""
        copy = 0 if self.copy is None else self.copy.data_ptr()
        tensors = (self.grad, self.weight, self.exp_avg, self.exp_avg_sq, self.step)
        return (*(tensor.data_ptr() for tensor in tensors), copy)


@dataclass
class Launch:
    """The chunks of one kind of layers."""

    types: tuple[str, str]
    first: int
    chunks: int
    norm_programs: int
    slot: int
    """Where its partial sums of the norm start."""
    items: Tensor | None
    """int32 (programs, rounds), the persistent form's lists."""


@dataclass
class Plan:
    """What follows from the sizes of the layers: the launches, and buffers that live between steps."""

    key: object
    launches: list[Launch]
    layer_of: Tensor
    first: list[int]
    """Number of the first chunk of each layer, and of the chunk after the last."""
    partials: Tensor
    sums: Tensor
    kept: Tensor
    arrivals: Tensor
    tables: dict[str, tuple[object, Tensor]] = field(default_factory=dict)
    """Contents as the host knows them, and the same on the device."""
    rates: list[Tensor] = field(default_factory=list)
    """Learning rates that the last step read on the device."""

    def table(self, name: str, content: list[Any], dtype: type, device: torch.device) -> Tensor:
        """Return ``content`` on the device; it is sent only if it differs from the last time."""
        known, table = self.tables.get(name, (None, None))
        if known != content or table is None:
            table = upload(np.array(content, dtype=dtype), device)
            self.tables[name] = content, table
        return table


def plan_for(work: Work, rows: list[Row], chunk: int, programs: int | None) -> Plan:
    """Return the plan for ``rows``, sorted by kind; the kept one if their sizes are the same.

    ``chunk``: elements of a chunk. ``programs``: of the persistent form; None: the other form.
    """
    key = (chunk, programs, tuple((row.weight.numel(), row.kind()) for row in rows))
    kept = work.workspace.get("triton")
    if kept is not None and kept.key == key:
        return kept
    counts = [-(-row.weight.numel() // chunk) for row in rows]
    first = [0, *np.cumsum(counts).tolist()]
    launches: list[Launch] = []
    starts = [i for i, row in enumerate(rows) if i == 0 or row.kind() != rows[i - 1].kind()]
    slot = 0
    for i, j in pairwise([*starts, len(rows)]):
        chunks = first[j] - first[i]
        norm_programs = min(chunks, NORM_PROGRAMS)
        items = None if programs is None else upload(program_lists(first[i : j + 1], programs), work.device)
        launches.append(Launch(rows[i].kind(), first[i], chunks, norm_programs, slot, items))
        slot += norm_programs
    layer_of = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
    options: dict[str, Any] = {"dtype": torch.float64, "device": work.device}
    plan = Plan(
        key,
        launches,
        upload(layer_of, work.device),
        first,
        partials=torch.empty(slot, **options),
        sums=torch.empty(3, first[-1], **options),
        kept=torch.empty(len(rows), 4, **options),
        arrivals=torch.empty(2, len(rows), dtype=torch.int32, device=work.device),
    )
    work.workspace["triton"] = plan
    return plan


def program_lists(first: list[int], programs: int) -> np.ndarray:
    """Return what each program of the persistent form does, int32 (programs, rounds): see ``persistent_kernel``.

    ``first``: number of the first chunk of each layer, and of the chunk after the last. Layers are taken in runs of at
    least ``programs`` chunks: in a run a program updates every ``programs``-th chunk and then applies the same ones
    in reverse. An update never waits, and an apply only for updates of its own run, which stand before every apply of
    the run in every list: programs that are all resident cannot wait for each other in a circle.
    """
    lists: list[list[int]] = [[] for _ in range(programs)]
    start = first[0]
    for end in first[1:]:
        if end - start < programs and end != first[-1]:
            continue
        for program in range(programs):
            own = range(start + (program - start) % programs, end, programs)
            lists[program] += [2 * chunk for chunk in own]
            lists[program] += [2 * chunk + 1 for chunk in reversed(own)]
        start = end
    items = np.full((programs, max(len(each) for each in lists)), -1, dtype=np.int32)
    for row, each in zip(items, lists, strict=True):
        row[: len(each)] = each
    return items


def layer_table(work: Work, rows: list[Row], plan: Plan) -> Tensor:
    """Return the rows of ``LAYER_FIELDS`` on the device."""
    content = [
        (
            *row.addresses(),
            row.weight.numel(),
            all(address % 16 == 0 for address in row.streamed()),
            row.group,
            plan.first[i],
            plan.first[i + 1] - plan.first[i],
            row.place,
        )
        for i, row in enumerate(rows)
    ]
    return plan.table("layers", content, np.int64, work.device)


def group_table(work: Work, plan: Plan) -> Tensor:
    """Return the rows of ``GROUP_FIELDS``, one of each part, on the device. Its learning rates stay where they are."""
    rules, adaptation = work.rules, work.rules.adaptation
    content, plan.rates = [], []
    for layers in work.parts:
        (beta1, beta2), rate, decay = layers.group["betas"], layers.group["lr"], layers.group["weight_decay"]
        lr_at, lr = 0, 0.0
        if isinstance(rate, Tensor) and rate.device == work.device:
            plan.rates.append(rate.to(torch.float64))  # must live until the kernels run
            lr_at = plan.rates[-1].data_ptr()
        else:
            lr = float(rate)
        logs = [math.log(beta) if beta > 0 and rules.bias_correction else -math.inf for beta in (beta1, beta2)]
        adapted = adaptation.layers == "all" or decay != 0
        low = 0.0 if adaptation.phi_min is None else adaptation.phi_min
        high = math.inf if adaptation.phi_max is None else adaptation.phi_max
        bits = np.array(lr_at, dtype=np.int64).view(np.float64).item()
        numbers = (beta1, 1 - beta1, beta2, 1 - beta2, *logs, layers.group["eps"], decay, float(adapted))
        content.append((bits, lr, *numbers, low, high, rules.max_grad_norm))
    return plan.table("groups", content, np.float64, work.device)


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Return ``array`` on ``device``. torch's host allocator keeps the pinned memory until it is read."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.clone()


def device_scalar(value: Tensor | float | None, default: float, work: Work) -> Tensor:
    """Return ``value`` as a tensor with one element on the device. A number that is met again is not sent again."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return value.to(work.device, non_blocking=True)
    number = default if value is None else float(value)
    constants = work.workspace.setdefault("triton constants", {})
    if number not in constants:
        if len(constants) > 8:  # a loss scale that changes, given as a number
            constants.clear()
        constants[number] = torch.full((), number, dtype=torch.float64, device=work.device)
    return constants[number]
