"""torch.compile for the functions of ``bert.Pieces``, in fixed shapes, before the first step.

Each function is compiled separately and without graph breaks. All layers share the compiled code, so a deep model
compiles as fast as a shallow one, and the gradients of a layer can be all-reduced before those of the next are
computed. Only the shapes of ``data.collate.fixed_shapes`` or ``data.packing.packed_shapes`` occur, so nothing is
compiled during training.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.torch_version import TorchVersion

from bert_pretrain.data.collate import Shape, dummy_batch
from bert_pretrain.errors import ConfigError, on_one_line
from bert_pretrain.model.bert import Pieces, PretrainingModel
from bert_pretrain.model.precision import MixedPrecision


def compile_model(
    model: PretrainingModel, precision: MixedPrecision, shapes: list[Shape], log: Callable[[str], None]
) -> None:
    """Compile the functions of ``model`` for ``shapes``, forward and backward, and report progress with ``log``.

    Leaves no gradients. Raises ``ConfigError`` if the compiler fails, or if this torch compiles wrong dropout.
    """
    _disable_fourfold_random()
    # The limit counts all shapes of a function, with and without autocast. Beyond it torch silently stops compiling.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(shapes))
    graphs = model.speed.cuda_graphs
    options: dict[str, Any] = {"triton.cudagraphs": True} if graphs else {}
    model.pieces = Pieces(
        *(torch.compile(piece, dynamic=False, fullgraph=True, options=options) for piece in Pieces())  # type: ignore[arg-type]
    )
    if graphs:  # a gradient allocated by a graph would be overwritten when the graph runs again
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    began = time.perf_counter()
    log(f"compiling the model for {len(shapes)} micro-batch shapes (speed.compile=false turns this off)")
    for number, shape in enumerate(shapes, 1):
        started = time.perf_counter()
        try:
            _forward_backward(model, precision, shape)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # dynamo, a C++ compiler, triton, ptxas and a driver fail in many ways
            reason = on_one_line(getattr(error, "inner_exception", error))  # inductor's own, where it has failed
            raise ConfigError(
                f"speed.compile is on, but torch could not compile the model ({reason}); it needs a C++ compiler, "
                "setuptools and, for GPUs, triton: install what is missing, or use speed.compile=false"
            ) from None
        kind = "packed" if shape.packed else "padded" if shape.has_mask else "all real"
        name = f"{shape.samples} x {shape.length} tokens, {kind}"
        log(f"  {number} of {len(shapes)}: {name} in {time.perf_counter() - started:.1f} s")
    model.zero_grad(set_to_none=not graphs)
    log(f"compiled in {time.perf_counter() - began:.0f} s")


def turn_off_compiling(model: PretrainingModel) -> None:
    """Let ``model`` run as it is, without CUDA graphs too, if code is not compiled. Leaves no gradients."""
    model.pieces, model.speed = Pieces(), replace(model.speed, compile=False, cuda_graphs=False)
    model.zero_grad(set_to_none=True)


def _forward_backward(model: PretrainingModel, precision: MixedPrecision, shape: Shape) -> None:
    """The forward and backward pass of a step on a dummy batch."""
    with precision.autocast(), model.step():
        out = model(*dummy_batch(shape).to(precision.device).tensors())
        with precision.autocast(enabled=False):
            ((out.mlm_loss + out.nsp_loss) * 0).backward()


def _disable_fourfold_random() -> None:
    """Turn off inductor's fourfold random numbers: in torch 2.13 and 2.14 they repeat in dropout masks on GPUs.

    pytorch issue 198333. ``TORCHINDUCTOR_USE_RAND4X=0`` does the same, but torch 2.13 does not support it.
    """
    from torch._inductor.codegen.triton import TritonOverrides  # slow to import, and needed only here

    if hasattr(TritonOverrides, "_can_use_4x_random"):
        TritonOverrides._can_use_4x_random = staticmethod(lambda: False)  # type: ignore[method-assign]
    elif TorchVersion("2.13") <= torch.__version__ < TorchVersion("2.15"):
        raise ConfigError(
            f"speed.compile is on, but torch {torch.__version__} may repeat random numbers in compiled dropout "
            "(pytorch issue 198333); use another version of torch, or speed.compile=false"
        )
