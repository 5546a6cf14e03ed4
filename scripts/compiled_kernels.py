"""Compiles the Triton kernels of NVLAMB for GPUs that need not be there, and reads what the compiler made of them.

The launches are those of real optimizer steps, on small layers: types, alignment and options are what a run passes.
Each launch is compiled by triton and its own ptxas (NVIDIA) or LLVM (AMD) instead of being run.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget

from bert_pretrain.optim import NVLamb, nvlamb, nvlamb_triton

TARGETS = {f"sm_{number}": GPUTarget("cuda", number, 32) for number in (70, 75, 80, 86, 89, 90, 100, 120)}
"""By name: V100, T4, A100, A10 and RTX 30, L4 and RTX 40, H100, B200, RTX 50, and below MI300."""
TARGETS["gfx942"] = GPUTarget("hip", "gfx942", 64)
DTYPES = torch.float32, torch.bfloat16, torch.float16

# What counts: for each kind of target, one expression a property of its assembly.
_WIDE = {"cuda": r"\b{}\.global\.(?:[\w:]+\.)*v[48]\.b32", "hip": r"\bbuffer_{}_dwordx4"}
_WAITS = {"cuda": r"\bbar\.sync", "hip": r"\bs_barrier"}
_ENDS = {"cuda": r"^\$L__BB\w+:|\bbra\b.*$", "hip": r"^\.LBB\w+:|\bs_c?branch.*$"}
"""Labels and jumps: where a stretch of code ends that runs as a whole."""
_ATOMICS = {"cuda": r"\b(?:atom|red)\.", "hip": r"\b(?:global|flat|buffer)_atomic"}
_HIP_FIELDS = {
    "registers": r"\.vgpr_count:\s+(\d+)",
    "local_bytes": r"  \.private_segment_fixed_size: (\d+)\n",
}


class NoDevice:
    """What triton asks its driver before it compiles, answered for a target that is not here."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        """The target to compile for."""
        return self.target

    def get_current_device(self) -> GPUTarget:
        """Key of triton's cache of compiled kernels."""
        return self.target

    def get_current_stream(self, device: object) -> int:
        """Not used: nothing is launched."""
        return 0


@contextmanager
def compiled_instead_of_launched(target: GPUTarget) -> Iterator[dict[tuple[str, str], Any]]:
    """Context in which a launch only compiles. Yields what was compiled, or the error, by kernel and kind of launch."""
    kernel_type: Any = triton.runtime.JITFunction
    compiled: dict[tuple[str, str], Any] = {}
    launch = kernel_type.run

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        name, kind = kernel.fn.__name__, kind_of(dict(zip(kernel.arg_names, args, strict=False)), options)
        try:
            compiled[name, kind] = launch(kernel, *args, grid=grid, warmup=True, **options)
        except Exception as error:
            compiled[name, kind] = error

    triton.runtime.driver.set_active(NoDevice(target))
    with patch.object(kernel_type, "run", run), patch.dict(nvlamb.KERNELS, fused=nvlamb_triton.fused_step):
        yield compiled


def kind_of(args: dict[str, Any], options: dict[str, Any]) -> str:
    """What tells the launches of one kernel apart: types of gradient and copy, pre-normalisation, loss scaling."""
    words = [str(options[name]) for name in ("TYPE", "COPY_TYPE", "PRE") if name in options]
    words += ["first launch"] if options.get("CLEAR") else []
    words += ["loss scale"] if "scale" in args and args["scale"].dtype == torch.float32 else []
    return ", ".join(words)


def step(*dtypes: torch.dtype, pre_normalization: str = "unit", scaled: bool = False) -> None:
    """One step on layers of these types; ``scaled``: with the tensors that torch's GradScaler hands to optimizers."""
    params = [torch.ones(5, dtype=dtype, requires_grad=True) for dtype in dtypes]
    optimizer: Any = NVLamb(params, 0.01, kernel="fused", pre_normalization=pre_normalization)
    for param in params:
        param.grad = torch.ones_like(param)
    if scaled:
        optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.zeros(())
    optimizer.step()


def all_steps() -> None:
    """Steps with all kinds of launches that there are."""
    for dtype in DTYPES:
        for pre_normalization in ("unit", "clip", "none"):
            step(dtype, pre_normalization=pre_normalization)
        step(dtype, scaled=True)
    step(*DTYPES)  # only the first launch of a step clears


def optimizer_rows(target: str, steps: Any = all_steps) -> list[dict[str, Any]]:
    """One row for each kernel and kind of launch."""
    with compiled_instead_of_launched(TARGETS[target]) as compiled:
        steps()
    return [
        {
            "target": target,
            "kernel": name,
            "kind": kind,
            **(properties(found) if not isinstance(found, Exception) else refusal(found)),
        }
        for (name, kind), found in sorted(compiled.items())
    ]


def refusal(error: Exception) -> dict[str, Any]:
    """Why there is no code for a target: the line of the compiler's message that says so."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return {"refused": next((line for line in lines if "error" in line.lower()), lines[0] if lines else repr(error))}


def properties(compiled: Any) -> dict[str, Any]:
    """What a compiled kernel needs and does.

    ``local_bytes``: memory of a thread beside its registers; spilled registers go there. ``barriers``: in the loops
    that make wide (16 byte) accesses. ``narrow_offsets``: 32-bit offsets into arrays of layers, which may be longer.
    """
    backend = compiled.metadata.target.backend
    text = compiled.asm["ptx" if backend == "cuda" else "amdgcn"]
    if backend == "cuda":
        found = cuda_resources(compiled.asm["cubin"])
    else:
        found = {name: int(re.findall(pattern, text)[-1]) for name, pattern in _HIP_FIELDS.items()}
    loads, stores = (
        re.compile(_WIDE[backend].format(word)) for word in (("ld", "st") if backend == "cuda" else ("load", "store"))
    )
    stretches = re.split(_ENDS[backend], text, flags=re.MULTILINE)
    streaming = [part for part in stretches if loads.search(part) or stores.search(part)]
    return found | {
        "shared_bytes": compiled.metadata.shared,
        "wide_loads": len(loads.findall(text)),
        "wide_stores": len(stores.findall(text)),
        "barriers": sum(len(re.findall(_WAITS[backend], part)) for part in streaming),
        "atomics": len(re.findall(_ATOMICS[backend], text)),
        "narrow_offsets": narrow_offsets(compiled.asm["ttir"]),
    }


def cuda_resources(cubin: bytes) -> dict[str, int]:
    """Registers and local bytes of a thread, from the cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    used = {word: int(number) for word, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return {"registers": used["REG"], "local_bytes": used["STACK"] + used["LOCAL"]}


def narrow_offsets(ttir: str) -> int:
    """Offsets of 32 bits, extended or not, that are added to an address from a table: a layer's array."""
    kinds: dict[str, str] = {}
    found = 0
    for name, operation in re.findall(r"^\s*(%\S+) = (.*)$", ttir, re.MULTILINE):
        if added := re.match(r"tt\.addptr (%\S+), (%\S+) .*, (i\d+)(?: loc|$)", operation):
            base, offset, width = added.groups()
            narrow = width == "i32" or kinds.get(offset) == "extended"
            found += kinds.get(base) == "address" and narrow
        kinds[name] = {"tt.int_to_ptr": "address", "arith.extsi": "extended"}.get(operation.split(" ")[0], "")
    return found
