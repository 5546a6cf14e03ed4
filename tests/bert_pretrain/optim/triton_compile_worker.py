"""Run by test_nvlamb_triton_cost.py, in a process without triton's interpreter: prints properties of compiled kernels.

Once more with a fault put in: the start of a chunk in 32 bits.
"""

import json

import torch
import triton
import triton.language as tl
from compiled_kernels import optimizer_rows, step

from bert_pretrain.optim import nvlamb_triton_kernels as kernels

COMPILED = {"sm_70": torch.float32, "sm_90": torch.bfloat16, "sm_120": torch.float16, "gfx942": torch.float32}
chunk_of = kernels.chunk_of


@triton.jit
def narrow_chunk_of(layers, layer_of, chunk, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    row, start, size, whole = chunk_of(layers, layer_of, chunk, CHUNK, BLOCK)
    return row, start.to(tl.int32), size, whole


def main() -> None:
    """Print one row for each kernel, and with the fault."""
    rows = [
        row for target, dtype in COMPILED.items() for row in optimizer_rows(target, lambda dtype=dtype: step(dtype))
    ]
    kernels.chunk_of = narrow_chunk_of
    for kernel in (kernels.norm_kernel, kernels.update_kernel, kernels.apply_kernel):
        kernel.hash = None  # triton hashes a kernel with the functions that it calls, once
    print(json.dumps({"rows": rows, "with a fault": optimizer_rows("sm_80", lambda: step(torch.float32))}))


if __name__ == "__main__":
    main()
