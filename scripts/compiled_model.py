"""Compiles the model's pieces (``bert_pretrain.model.compile``) with inductor for a GPU that need not be there.

The tensors are fake, on a device that ``tests/fake_cuda/stand_in`` registers; torch is told the properties of an H100.
Inductor then writes its Triton code for the forward and backward pass of each piece, which triton and its ptxas
compile. Nothing of it runs. Three things of torch need a device and are replaced:

- ``UniformValueConstantFolder`` computes constants on the device: here on the CPU.
- ``pad_mm`` times padded matrix products on the device: off (``shape_padding``).
- ``GraphLowering.compile_to_module`` loads the code to run it: the graph runs on fake tensors instead. So launchers,
  autotuning, and the smaller blocks that inductor tries for kernels with too many registers, are left out.

A CPU build of torch has no flash kernels, so ``scaled_dot_product_attention`` becomes softmax and two products here; on
a GPU it stays one call of a kernel of torch's.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import torch
import torch._inductor.config
from compiled_kernels import TARGETS, NoDevice, properties, refusal
from torch import nn
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.codecache import _load_triton_kernel_from_source
from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertForPreTraining
from triton.runtime import driver

from bert_pretrain.data.collate import Shape
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.compile import compile_model
from bert_pretrain.model.options import PrecisionConfig, SpeedConfig
from bert_pretrain.model.precision import MixedPrecision

DEVICE = torch.device("cuda", 0)
WRITTEN_FOR = "sm_90"
_H100 = {
    "name": "H100",
    "gcnArchName": "",
    "multi_processor_count": 132,
    "major": 9,
    "minor": 0,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
    "total_memory": 80 << 30,
}
_KERNEL = re.compile(r"^(triton_\w+) = async_compile\.triton\('\w+', '''\n(.*?)'''", re.MULTILINE | re.DOTALL)


def write_code(bert: BertConfig, shape: Shape, compute: str) -> list[tuple[str, str]]:
    """What inductor writes for a model and a micro-batch shape: the name and the code of each graph."""
    written: list[tuple[str, str]] = []
    speed = SpeedConfig(False, False, True, True, False, False, None, True, False)  # those of recipes on one GPU
    driver.set_active(NoDevice(TARGETS[WRITTEN_FOR]))
    with _an_h100(written), FakeTensorMode():
        model = PretrainingModel(_on_device(BertForPreTraining(bert)), speed.on(DEVICE)).train()
        precision = MixedPrecision(PrecisionConfig(compute, 1.0, 1, True, False), DEVICE)
        compile_model(model, precision, [shape], lambda _: None)
    return written


def kernel_rows(written: list[tuple[str, str]], target: str) -> list[dict[str, Any]]:
    """One row for each Triton kernel: of the sizes of blocks that inductor tries, that with the least local memory."""
    rows = []
    for graph, code in written:
        for name, source in _KERNEL.findall(code):
            row: dict[str, Any] = {"target": target, "kernel": name, "kind": graph}
            try:
                rows.append(row | _compiled(name, source, target))
            except Exception as error:
                rows.append(row | refusal(error))
    return rows


def _compiled(name: str, source: str, target: str) -> dict[str, Any]:
    """Compile one kernel for all sizes of blocks."""
    major, minor = divmod(TARGETS[target].arch, 10)
    source = re.sub(r"cc=\d+, major=\d+", f"cc={10 * major + minor}, major={major}", source)
    driver.set_active(NoDevice(TARGETS[target]))
    own_launcher = torch._inductor.config.patch(use_static_triton_launcher=False)  # the other keeps no assembly
    with patch.object(triton_helpers, "set_driver_to_gpu", lambda: None), _device_properties(), own_launcher:
        tuner = _load_triton_kernel_from_source(name, source)
        tuner.precompile(warm_cache_only=True)  # what inductor's own worker processes do
    found = [properties(result.kernel) for result in tuner.compile_results]
    best = min(found, key=lambda one: (one["local_bytes"], one["registers"]))
    return {"sizes": len(found), "spilling": sum(one["local_bytes"] > 0 for one in found)} | best


@contextlib.contextmanager
def _device_properties() -> Iterator[None]:
    """Context in which torch knows one device."""
    answers: dict[str, Callable[..., Any]] = {
        "get_device_properties": lambda *_: SimpleNamespace(**_H100),
        "get_compute_capability": lambda *_: 90,
        "is_available": lambda *_: True,
        "current_device": lambda *_: 0,
        "synchronize": lambda *_: None,
    }
    with contextlib.ExitStack() as stack:
        for owner in (CudaInterface, CudaInterface.Worker):
            for name, answer in answers.items():
                if hasattr(owner, name):
                    stack.enter_context(patch.object(owner, name, staticmethod(answer)))
        yield


@contextlib.contextmanager
def _an_h100(written: list[tuple[str, str]]) -> Iterator[None]:
    """Context in which a device seems to be here, and code for it is noted in ``written`` instead of loaded."""
    functions = {
        "_lazy_init": lambda: None,
        "_exchange_device": lambda *_: 0,
        "_maybe_exchange_device": lambda *_: 0,
        "current_device": lambda: 0,
        "current_stream": MagicMock(),
        "device_count": lambda: 1,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: SimpleNamespace(**_H100),
        "get_rng_state": lambda *_: torch.empty(16, dtype=torch.uint8),
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "manual_seed_all": lambda *_: None,
        "set_rng_state": lambda *_: None,
        "synchronize": lambda *_: None,
    }
    deduce = UniformValueConstantFolder._deduce_value

    def deduce_on_cpu(folder: Any, node: torch.fx.Node) -> Any:
        given = node.kwargs
        if "device" in given:
            node.kwargs = given | {"device": torch.device("cpu")}
        try:
            return deduce(folder, node)
        finally:
            node.kwargs = given

    def note(graph: Any) -> SimpleNamespace:
        written.append((_graph_name(graph.orig_gm, graph.is_backward), graph.codegen()[0].value))

        def call(given: list[Any]) -> Any:
            tensors = list(given)
            given.clear()
            return graph.orig_gm(*tensors)

        return SimpleNamespace(call=call, __file__="", runner=None)

    with contextlib.ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(patch.object(torch.cuda, name, function))
        stack.enter_context(patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(patch.object(UniformValueConstantFolder, "_deduce_value", deduce_on_cpu))
        stack.enter_context(patch.object(GraphLowering, "compile_to_module", note))
        stack.enter_context(_device_properties())
        changes = {"compile_threads": 1, "shape_padding": False, "fx_graph_cache": False}
        stack.enter_context(torch._inductor.config.patch(changes))
        yield


def _graph_name(graph: Any, backward: bool) -> str:
    """The function of the model that a graph was traced from, by the source lines in its nodes."""
    stacks = "".join(node.stack_trace or "" for node in graph.graph.nodes)
    found = [name for name in ("embed", "run_layer", "run_heads") if f"in {name}\n" in stacks]
    return f"{' '.join(found) or '?'}, {'backward' if backward else 'forward'}"


def _on_device(module: nn.Module) -> Any:
    """The module with empty parameters and buffers on the device; tied parameters stay tied."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=DEVICE)
                part._parameters[name] = made.setdefault(id(parameter), nn.Parameter(empty))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)
    return module
