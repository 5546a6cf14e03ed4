"""NVLAMB on CUDA in Triton: three launches for all layers, without a device-to-host copy.

Bytes that a step moves per parameter with float32 weights and gradients (in brackets: bf16 gradients, and bf16 weights
with float32 masters), if nothing is found in the cache:

    norm      read g                                     4   (2)
    update    read g, w, m, v; write m, v               24  (22)
    apply     read w, m, v; write w (and its copy)      16  (18)
                                                        44  (42)    apex's FusedLAMB: 52 (50)

The update u is not stored. The apply kernel computes it again from w, m and v: as many bytes as writing and reading it,
and no buffer. Unscaling, pre-normalisation, bias correction, both norms and the rounding to bf16 or fp16 happen in
registers. Gradients are only read. Layers are launched by kind, that is by the types of gradient and copy; a model has
one kind as a rule. No program waits for another: each kernel reads what the launch before it wrote.

The kernels have not run on a GPU yet: bytes are counted, time is not measured.

At every step the host compares the addresses of all tensors with those of the last step. Only if they differ does it
copy tables to the device, through pinned memory and without waiting. Learning rates that are tensors on the device,
step counts, loss scale and ``found_inf`` are read there. If the step is skipped, the kernels return at once.

Float64 layers and weights that are not contiguous are refused; ``kernel=auto`` uses ``foreach`` for a model with such a
layer. A gradient that is not contiguous is copied first, and one that is not float32, bf16 or fp16 is converted. Layers
that do not start at a multiple of 16 bytes are read and written in 32-bit accesses, and so is the end of every layer.
Offsets are 64-bit.
"""

import contextlib
import functools
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import ConfigError, with_type
from bert_pretrain.optim.layers import Decision, Layers, Outcome, Rules, Work
from bert_pretrain.optim.norms import global_norm
from bert_pretrain.optim.nvlamb_triton_plan import Columns, Plan, device_scalar, group_table, layer_table, plan_for
from bert_pretrain.optim.trust import TrustRatio
from bert_pretrain.optim.usable import import_error, require_import, warn_of_fallback

HAS_TRITON = find_spec("triton") is not None  # torch installs triton for CUDA only
BLOCK, WARPS = 2048, 8
"""Elements that a program handles at once, and its warps: 8 elements a thread, in two accesses of four."""
_KERNELS = "bert_pretrain.optim.nvlamb_triton_kernels"
CHUNK = 1 << 15
"""Elements of a chunk: the work of one program."""


def fused_step(work: Work) -> Outcome:
    """Update all layers. Never waits for the device.

    The workspace keeps the tables and, in float64, three numbers per chunk and per layer. Raises ``ConfigError``
    without triton, and for layers that are not ``supported``.
    """
    if not HAS_TRITON:
        raise ConfigError("kernel is 'fused' and triton is not installed; allowed: foreach, or install torch for CUDA")
    require_import(_KERNELS, "triton")
    columns = Columns.of(work)
    plan = plan_for(work, columns, CHUNK)
    outcome = _launch(work, columns, plan)
    for i in plan.strided:
        columns.params[i].copy_(columns.weights[i])
    return outcome


def supported(weights: Tensor) -> bool:
    """Whether these kernels can update ``weights`` (for bf16 and fp16 parameters: their float32 masters)."""
    return HAS_TRITON and weights.dtype == torch.float32 and weights.is_contiguous()


@functools.cache
def works(device: torch.device) -> bool:
    """Whether triton can be used on the device: compiles and runs the kernels for one element, once a process.

    An installed triton may lack a C compiler, Python's headers, or fit another driver. If so, says it once.
    """
    problem = import_error(_KERNELS)
    if not problem:
        try:
            _try_on(device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways
            problem = with_type(error)
    if problem:
        warn_of_fallback("triton", problem)
    return not problem


def _try_on(device: torch.device) -> None:
    """One step of one element."""
    group = {"lr": 0.0, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0}
    weight, grad, moment, second = (torch.ones(1, device=device) for _ in range(4))
    step = torch.zeros((), device=device)
    part = Layers(group, [weight], [weight], [grad], [weight], [moment], [second], [step])
    rules = Rules("unit", 1.0, TrustRatio("all", None, None), True)
    fused_step(Work([part], device, rules, None, None, {}, [grad]))


def _launch(work: Work, columns: Columns, plan: Plan) -> Outcome:
    import bert_pretrain.optim.nvlamb_triton_kernels as kernels  # imports triton; the optimizer needs only torch

    layers, groups = layer_table(work, columns, plan), group_table(work, plan)
    n, total = len(columns.params), plan.layer_of.numel()
    # Allocated at every step: callers keep what they are given and read it later.
    report = torch.empty(2 + 2 * n, dtype=torch.float64, device=work.device)
    flags = torch.empty(2, dtype=torch.uint8, device=work.device)
    scale, found = device_scalar(work.grad_scale, 1.0, work), device_scalar(work.found_inf, 0.0, work)
    extra, partial_sums = device_scalar(None, 0.0, work), plan.partials.numel()
    sharded = work.shared_norm
    if sharded:  # ||G|| includes the layers of other ranks and is summed in the same order on all of them
        extra, partial_sums = global_norm(work.norm_grads).square(), 0
    options: dict[str, Any] = {"CHUNK": CHUNK, "BLOCK": BLOCK, "num_warps": WARPS}
    with torch.cuda.device(work.device) if work.device.type == "cuda" else contextlib.nullcontext():
        for launch in plan.launches:
            chunks = 0 if sharded else launch.chunks
            kernels.norm_kernel[(launch.norm_programs,)](
                layers, plan.layer_of, launch.first, chunks, plan.partials, launch.slot, report, flags, n,
                CLEAR=launch.first == 0, TYPE=launch.gradient_type, **options,
            )  # fmt: skip
        for launch in plan.launches:
            kernels.update_kernel[(launch.chunks,)](
                layers, groups, plan.layer_of, launch.first, total, plan.partials, partial_sums, extra, scale, found,
                report, flags, plan.sums, plan.kept,
                PRE=work.rules.pre_normalization, TYPE=launch.gradient_type, **options,
            )  # fmt: skip
            kernels.apply_kernel[(launch.chunks,)](
                layers, groups, plan.layer_of, launch.first, total, report, flags, plan.sums, plan.kept, n,
                COPY_TYPE=launch.copy_type, **options,
            )  # fmt: skip
    skipped, nonfinite = flags.view(torch.bool).unbind()
    return Outcome(Decision(report[0], skipped, report[1]), nonfinite, *report[2:].split(n))
