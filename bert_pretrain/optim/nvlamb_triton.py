"""NVLAMB on CUDA, in Triton: one launch sequence for all layers, and no word from the device to the host.

Bytes that a step moves for each parameter, float32 weights and gradients (in brackets: bf16 gradients and weights with
float32 masters), where nothing is found in the cache:

    norm      read g                                     4   (2)
    update    read g, w, m, v; write m, v               24  (22)
    apply     read w, m, v; write w (and its copy)      16  (18)
                                                        44  (42)    apex's FusedLAMB: 52 (50)

The update u is not stored: the apply computes it again from w, m and v, which costs as many bytes as writing and
reading it would, and no memory. Unscaling, pre-normalisation, bias correction, both norms and the rounding to bf16 or
fp16 ride along in registers. Gradients are read only.

- ``form="three_launch"``, the default: the three lines above, one launch each (for each pair of gradient and copy
  type; a model has one as a rule). What one launch leaves the next one reads: nothing waits inside a kernel.
- ``form="persistent"``: the norm, then update and apply in one launch. It works its way through the layers a large one
  or about two million elements at a time (on 132 multiprocessors); the apply of these follows their update at once, in
  reverse order, and finds most of w, m, v in the L2 cache: 32 bytes, and what it misses of the other 12. A model of an
  LRU cache says 33 to 38 for BERT-large with 55 to 25 MB of it. Programs wait for each other inside the kernel, so all
  must be resident: it is a cooperative launch.

Neither form has run on a GPU yet: bytes are counted, time is not measured. The first relies on nothing but the order of
launches, so it is the default; the second would hang where its waiting is wrong.

The host checks the addresses of all tensors at every step and copies tables to the device, through pinned memory and
without waiting, only when something moved. Learning rates that are tensors on the device, step counts, loss scale and
``found_inf`` are read there; a skipped step is a step whose kernels return at once.

Float64 layers and weights that are not contiguous are refused; ``kernel=auto`` leaves a model with such a layer to
``foreach``. A gradient that is not contiguous is copied first, and one that is neither float32 nor bf16 nor fp16 is
converted. Layers that do not start at a multiple of 16 bytes take 32-bit accesses, from the first element to the last;
so does the end of every other layer. Offsets have 64 bits.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.optim.layers import Decision, Outcome, Work
from bert_pretrain.optim.norms import global_norm
from bert_pretrain.optim.nvlamb_triton_plan import (
    Columns,
    Plan,
    device_scalar,
    group_table,
    layer_table,
    plan_for,
)

try:
    import bert_pretrain.optim.nvlamb_triton_kernels as kernels
except ImportError:  # torch brings triton for CUDA only
    TRITON = False
else:
    TRITON = True

FORMS = ("three_launch", "persistent")
BLOCK, WARPS = 2048, 8
"""Elements in flight in a program, and its warps: 8 elements a thread, in two goes of four."""
CHUNKS = {"three_launch": 1 << 15, "persistent": 1 << 13}
"""Elements of a chunk: the work of a program, or an item of its list."""
RESIDENT, REGISTERS = 2, 128
"""Programs of the persistent form on a multiprocessor, and the registers of a thread that let them fit."""


def fused_step(work: Work, form: str = "three_launch") -> Outcome:
    """Update all layers; never waits for the device. ``form`` as in the module's docstring.

    The workspace keeps the tables and, of float64 numbers, three a chunk and four a layer. Raises ``ConfigError``
    without triton, and for layers that are not ``expressible``.
    """
    require(form in FORMS, "form", form, " | ".join(FORMS))
    if not TRITON:
        raise ConfigError("kernel is 'fused' and triton is not installed; allowed: foreach, or install torch for CUDA")
    columns = Columns.of(work)
    plan = plan_for(work, columns, CHUNKS[form], _programs(work.device) if form == "persistent" else None)
    outcome = _launch(work, columns, plan, CHUNKS[form])
    for i in plan.strided:
        columns.params[i].copy_(columns.weights[i])
    return outcome


def expressible(weights: Tensor) -> bool:
    """Whether these kernels can update ``weights`` (for bf16 and fp16 parameters: their float32 masters)."""
    return TRITON and weights.dtype == torch.float32 and weights.is_contiguous()


def _launch(work: Work, columns: Columns, plan: Plan, chunk: int) -> Outcome:
    layers, groups = layer_table(work, columns, plan), group_table(work, plan)
    n, total = len(columns.params), plan.layer_of.numel()
    # New at every step: callers keep what they are given, and read it later.
    report = torch.empty(2 + 2 * n, dtype=torch.float64, device=work.device)
    flags = torch.empty(2, dtype=torch.uint8, device=work.device)
    scale, found = device_scalar(work.grad_scale, 1.0, work), device_scalar(work.found_inf, 0.0, work)
    extra, partial_sums = device_scalar(None, 0.0, work), plan.partials.numel()
    divided = len(work.norm_grads) > n
    if divided:  # other ranks' layers count too, in an order that is theirs as well
        extra, partial_sums = global_norm(work.norm_grads).square(), 0
    decided = (plan.partials, partial_sums, extra, scale, found, report, flags)
    options: dict[str, Any] = {"CHUNK": chunk, "BLOCK": BLOCK, "num_warps": WARPS}
    pre = {"PRE": work.rules.pre_normalization}
    with torch.cuda.device(work.device) if work.device.type == "cuda" else contextlib.nullcontext():
        for launch in plan.launches:
            norm = kernels.norm_kernel[(launch.norm_programs,)]
            chunks = (launch.first, 0 if divided else launch.chunks, plan.partials, launch.slot)
            types = {"TYPE": launch.types[0], "CLEAR": launch.first == 0}
            norm(layers, plan.layer_of, *chunks, report, flags, plan.arrivals, n, **types, **options)
        for launch in plan.launches:
            where = (layers, groups, plan.layer_of, launch.first, total)
            grad, copy = {"TYPE": launch.types[0]}, {"COPY_TYPE": launch.types[1]}
            if launch.items is None:
                update, apply = kernels.update_kernel[(launch.chunks,)], kernels.apply_kernel[(launch.chunks,)]
                update(*where, *decided, plan.sums, plan.kept, **pre, **grad, **options)
                apply(*where, report, flags, plan.sums, plan.kept, n, **copy, **options)
                continue
            programs, rounds = launch.items.shape
            # The interpreter knows neither of the two.
            resident = {"maxnreg": REGISTERS, "launch_cooperative_grid": True} if work.device.type == "cuda" else {}
            both = kernels.persistent_kernel[(programs,)]
            buffers = (plan.sums, plan.kept, plan.arrivals, n)
            both(launch.items, rounds, *where, *decided, *buffers, **pre, **grad, **copy, **options, **resident)
    skipped, nonfinite = flags.view(torch.bool).unbind()
    return Outcome(Decision(report[0], skipped, report[1]), nonfinite, *report[2:].split(n))


def _programs(device: torch.device) -> int:
    """Programs that are resident at once. The interpreter runs one after the other."""
    if device.type != "cuda":
        return 1
    return RESIDENT * torch.cuda.get_device_properties(device).multi_processor_count
