"""The fast paths of a run, compared with plain ones before its first step on a GPU.

A kernel can be wrong on a device, driver or version that nobody has tried. Each fast path in use is compared with plain
PyTorch on a micro-batch, and the kernel of the optimizer on an update (``optim.first_update``). What differs, or raises
an error, on any rank is not used on any: the run says so in one line and goes on without it.

Of a micro-batch the losses and, by layer, the gradients are compared, as vectors. With the ``reference``, another
``plain`` result and the ``fast`` one: ||fast - reference|| may be at most ``FACTOR`` ||plain - reference|| plus a floor
times the layer's norm (at least a hundredth of the whole gradient's, since the gradient of a key bias is rounding
alone).

- sdpa and the fused loss: without dropout; the reference is eager attention in float32, the plain result that in the
  run's type. FlashAttention's own tests have this criterion, with factors of 2 and 3.
- compiled code: with dropout as compiled, since without it other code would be compiled. Its masks differ from eager's,
  so reference and plain result are eager with two seeds: it may be as far from one as the other is, up to the factor.
  In a model without dropout both are the same eager run, and the floor decides.

The floor is that of float32, and of the run's type where reference and plain result are the same. ``FLOORS`` are some
roundings, which add up over layers: TF32's and fp16's are 2^-11, bf16's 2^-8.

Nothing is left: no gradient, random number or weight changes. On CPUs it does not run: those kernels have no driver or
device of their own to be wrong on, and are tested against the equations on every platform that the tests run on.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bert_pretrain.data.collate import MicroBatch
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import with_type
from bert_pretrain.model.bert import Pieces, PretrainingModel
from bert_pretrain.model.compile import turn_off_compiling
from bert_pretrain.model.precision import MixedPrecision
from bert_pretrain.optim.first_update import first_fault, guard_first_update

DEVICES = ("cuda",)
FACTOR = 3.0
FLOORS = {torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_ROWS = 4  # of a micro-batch: eager attention and float32 need more memory than what was planned for
_SCALE = 1024.0  # of the loss, so that no gradient vanishes in fp16


@dataclass(frozen=True)
class CodePath:
    """A way to compute forward and backward."""

    pieces: Pieces
    attention: str
    fused_loss: bool

    def use(self, model: PretrainingModel) -> None:
        """Let ``model`` compute this way."""
        model.pieces = self.pieces
        model.bert.config._attn_implementation = self.attention
        if model.speed.fused_loss != self.fused_loss:
            model.speed = replace(model.speed, fused_loss=self.fused_loss)


def check_first_step(
    model: PretrainingModel,
    optimizer: torch.optim.Optimizer,
    precision: MixedPrecision,
    world: World,
    micro_batch: MicroBatch,
    report: Callable[[str], None],
) -> None:
    """Compare the paths of ``model`` on ``micro_batch``, and have the first update compared. Collective."""
    check_model(model, precision, world, micro_batch, report)
    guard_first_update(optimizer, world.gather, report)
    if world.device.type == "cuda":
        torch.cuda.empty_cache()


def check_model(
    model: PretrainingModel,
    precision: MixedPrecision,
    world: World,
    micro_batch: MicroBatch,
    report: Callable[[str], None],
) -> None:
    """Turn off each fast path of ``model`` that is wrong on ``micro_batch`` on any rank."""
    wanted = CodePath(model.pieces, model.bert.config._attn_implementation, model.speed.fused_loss)
    chosen = CodePath(Pieces(), "eager", False)
    checks = {
        "the fused loss": ({"fused_loss": True}, wanted.fused_loss),
        "attention sdpa": ({"attention": "sdpa"}, wanted.attention == "sdpa"),
        "compiled code": ({"pieces": wanted.pieces}, wanted.pieces != Pieces()),
    }
    good = []
    devices = [world.device] if world.device.type == "cuda" else []
    try:
        for name in (name for name, (_, in_use) in checks.items() if in_use):
            trial: CodePath = replace(chosen, **checks[name][0])  # type: ignore[arg-type]
            with world.busy(f"comparing {name} with plain PyTorch"), torch.random.fork_rng(devices):
                fault, compared = _fault(model, precision, micro_batch, chosen, trial)
            if found := first_fault(world.gather(fault)):
                report(f"{name}{found}; the run goes on without it")
                continue
            chosen = trial
            if compared:
                good.append(name)
    finally:
        chosen.use(model)
        if chosen.pieces != wanted.pieces:
            turn_off_compiling(model)
    if good:
        verb = "agrees" if len(good) == 1 else "agree"
        report(f"{' and '.join(good)} {verb} with plain PyTorch on a micro-batch")


def _fault(
    model: PretrainingModel, precision: MixedPrecision, micro_batch: MicroBatch, plain: CodePath, trial: CodePath
) -> tuple[str, bool]:
    """What is wrong with ``trial``, or empty; and whether it was compared: not if there is no memory for ``plain``."""
    compiled = trial.pieces != plain.pieces
    part = micro_batch if compiled else first_rows(micro_batch, _ROWS)
    part = part.to(precision.device)
    dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    with nullcontext() if compiled else without_dropout(model):
        try:
            plain.use(model)
            reference = _results(model, precision, part, seed=1, cast=compiled)
            other = _results(model, precision, part, seed=2 if compiled and dropout else 1)
        except torch.OutOfMemoryError:
            return "", False
        allowed = _norms(a - b for a, b in zip(other, reference, strict=True)) * FACTOR
        del other
        sizes = _norms(reference)
        sizes[2:] = sizes[2:].clamp(min=0.01 * sizes[2:].norm().item())
        allowed = allowed + FLOORS[precision.dtype if compiled and not dropout else torch.float32] * sizes
        try:
            trial.use(model)
            fast = _results(model, precision, part, seed=3)
            excess = _norms(a - b for a, b in zip(fast, reference, strict=True)) / allowed.clamp(min=1e-30)
            worst = [math.inf if math.isnan(value) else value for value in excess.tolist()]
        except Exception as error:  # compilers and drivers fail in many ways
            return with_type(error), True
    if not bool(torch.isfinite(allowed).all()) or max(worst) <= 1.0:
        return "", bool(torch.isfinite(allowed).all())
    names = ["the MLM loss", "the NSP loss", *(f"the gradient of {name}" for name, _ in _trained(model))]
    place = worst.index(max(worst))
    return f"{names[place]} differs by {worst[place]:.2g} times what rounding and dropout explain", True


def _trained(model: PretrainingModel) -> list[tuple[str, nn.Parameter]]:
    return [(name, param) for name, param in model.bert.named_parameters() if param.requires_grad]


def _results(
    model: PretrainingModel, precision: MixedPrecision, batch: MicroBatch, seed: int, cast: bool = True
) -> list[Tensor]:
    """Both losses, and the gradient of each trained parameter. Not through ``backward``, which DDP listens to."""
    torch.manual_seed(seed)
    params = [param for _, param in _trained(model)]
    masked = (batch.masked_labels >= 0).sum().clamp(min=1)
    with precision.autocast() if cast else nullcontext(), model.step() if cast else nullcontext():
        out = model(*batch.tensors())
        with precision.autocast(enabled=False):
            loss = (out.mlm_loss / masked + out.nsp_loss / len(batch.next_sentence_labels)) * _SCALE
            found = torch.autograd.grad(loss, params, allow_unused=True)
    grads = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(params, found, strict=True)]
    return [out.mlm_loss.detach(), out.nsp_loss.detach(), *grads]


def _norms(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(tensor.double()) for tensor in tensors])


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Context in which nothing is dropped, and the model computes as in training otherwise."""
    kept = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    try:
        for module, _ in kept:
            module.p = 0.0
        yield
    finally:
        for module, p in kept:
            module.p = p


def first_rows(batch: MicroBatch, rows: int) -> MicroBatch:
    """The first ``rows`` of ``batch``; all of it if it is packed."""
    if batch.cu_seqlens is not None:
        return batch
    masked = batch.masked_positions < rows * batch.input_ids.shape[1]
    return replace(
        batch,
        input_ids=batch.input_ids[:rows],
        attention_mask=None if batch.attention_mask is None else batch.attention_mask[:rows],
        segment_ids=batch.segment_ids[:rows],
        masked_positions=batch.masked_positions[masked],
        masked_labels=batch.masked_labels[masked],
        next_sentence_labels=batch.next_sentence_labels[:rows],
    )
