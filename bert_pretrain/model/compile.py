"""torch.compile for the model's pieces, in fixed shapes, before the first step.

Each piece is compiled alone and without a break: all layers of an encoder share one piece of code, so that a deep model
compiles no longer than a shallow one, and gradients of a layer are ready to travel before those of the next. Shapes are
those of ``batches.fixed_shapes`` and no others, so that nothing is compiled once training has begun.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.torch_version import TorchVersion

from bert_pretrain.data.collate import Shape, dummy_batch
from bert_pretrain.errors import ConfigError
from bert_pretrain.model.bert import Pieces, PretrainingModel
from bert_pretrain.model.precision import MixedPrecision


def compile_model(
    model: PretrainingModel, precision: MixedPrecision, shapes: list[Shape], say: Callable[[str], None]
) -> None:
    """Compile the pieces of ``model`` for ``shapes``, forward and backward, saying how far it is.

    Leaves no gradients behind. Raises ``ConfigError`` where the compiler fails or cannot be trusted.
    """
    _keep_dropout_independent()
    # One limit counts all shapes of a piece, with and without autocast; beyond it torch silently no longer compiles.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(shapes))
    graphs = model.speed.cuda_graphs
    options: dict[str, Any] = {"triton.cudagraphs": True} if graphs else {}
    model.pieces = Pieces(
        *(torch.compile(piece, dynamic=False, fullgraph=True, options=options) for piece in Pieces())  # type: ignore[arg-type]
    )
    if graphs:  # a gradient that is taken over from a graph would be overwritten when the graph runs again
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    began = time.perf_counter()
    say(f"compiling the model for {len(shapes)} shapes of micro-batches (speed.compile=false does without)")
    for number, shape in enumerate(shapes, 1):
        started = time.perf_counter()
        try:
            _forward_backward(model, precision, shape)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.CppCompileError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"speed.compile is on, but torch could not compile the model ({reason}); install a C++ compiler and, "
                "for GPUs, triton, or use speed.compile=false"
            ) from None
        say(f"  {number} of {len(shapes)}: {shape.text()} in {time.perf_counter() - started:.1f} s")
    model.zero_grad(set_to_none=not graphs)
    say(f"compiled in {time.perf_counter() - began:.0f} s")


def _forward_backward(model: PretrainingModel, precision: MixedPrecision, shape: Shape) -> None:
    """What a step does with a micro-batch, on one that holds nothing."""
    with precision.autocast(), model.step():
        out = model(*dummy_batch(shape).to(precision.device).tensors())
        with precision.autocast(enabled=False):
            ((out.mlm_loss + out.nsp_loss) * 0).backward()


def _keep_dropout_independent() -> None:
    """Switch off inductor's fourfold random numbers, which in torch 2.13 and 2.14 repeat in dropout masks on GPUs.

    pytorch issue 198333. ``TORCHINDUCTOR_USE_RAND4X=0`` does the same in versions that know it, which 2.13 does not.
    """
    from torch._inductor.codegen.triton import TritonOverrides  # slow, and needed here alone

    if hasattr(TritonOverrides, "_can_use_4x_random"):
        TritonOverrides._can_use_4x_random = staticmethod(lambda: False)  # type: ignore[method-assign]
    elif TorchVersion("2.13") <= torch.__version__ < TorchVersion("2.15"):
        raise ConfigError(
            f"speed.compile is on, but torch {torch.__version__} may repeat random numbers in compiled dropout "
            "(pytorch issue 198333); use another version of torch, or speed.compile=false"
        )
