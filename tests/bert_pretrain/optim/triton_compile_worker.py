"""Run by test_nvlamb_triton_cost.py: compiles the kernels for sm_90 without a GPU and prints properties as JSON.

One row for each kernel and kind of layers: registers, stack and local bytes of a thread (ptxas spills to the latter),
and the number of wide loads and stores.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bert_pretrain.optim import nvlamb_triton
from bert_pretrain.optim import nvlamb_triton_kernels as kernels

TABLES = {
    "layers": "*i64",
    "layer_of": "*i32",
    **dict.fromkeys(("groups", "partials", "extra", "report", "sums", "kept"), "*fp64"),
    **dict.fromkeys(("scale", "found"), "*fp32"),
    "flags": "*u8",
}
KINDS = {"float32": ("float32", "none"), "bf16": ("bfloat16", "bfloat16"), "fp16": ("float16", "float16")}


def compiled(name: str, kind: str) -> dict:
    """Compile a kernel as ``nvlamb_triton`` launches it for layers of ``kind``."""
    kernel = getattr(kernels, name)
    constants = {"CHUNK": nvlamb_triton.CHUNK, "BLOCK": nvlamb_triton.BLOCK, "PRE": "unit", "CLEAR": True}
    constants |= {"TYPE": KINDS[kind][0], "COPY_TYPE": KINDS[kind][1]}
    names = kernel.arg_names
    signature = {arg: "constexpr" if arg in constants else TABLES.get(arg, "i32") for arg in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(names) if arg in TABLES}
    values = {(i,): constants[arg] for i, arg in enumerate(names) if arg in constants}
    options = {"num_warps": nvlamb_triton.WARPS}
    source = ASTSource(kernel, signature, values, aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    ptx = re.sub(r"L[12]::\w+\.?", "", binary.asm["ptx"])
    accesses: dict[str, int] = {}
    for width in re.findall(r"\b((?:ld|st)\.global\.(?:v\d\.)?)b\d+", ptx):
        accesses[width] = accesses.get(width, 0) + 1
    row = {"kernel": name, "kind": kind, "wide_loads": accesses.get("ld.global.v4.", 0)}
    row |= {"wide_stores": accesses.get("st.global.v4.", 0), "barriers": barriers_beside_wide_accesses(ptx)}
    row["atomics"] = len(re.findall(r"\b(?:atom|red)\.", ptx))
    for key, word in (("registers", "REG"), ("stack", "STACK"), ("local", "LOCAL"), ("shared", "SHARED")):
        row[key] = int(re.search(rf"{word}:(\d+)", usage)[1])
    return row


def barriers_beside_wide_accesses(ptx: str) -> int:
    """Barriers in the loops that make wide accesses: in stretches of code without a label or branch."""
    stretches = re.split(r"^\$L__BB\w+:|\bbra\b.*$", ptx, flags=re.MULTILINE)
    return sum(part.count("bar.sync") for part in stretches if re.search(r"(?:ld|st)\.global\.v4", part))


def main() -> None:
    """Print the rows."""
    names = ("norm_kernel", "update_kernel", "apply_kernel")
    print(json.dumps([compiled(name, kind) for name in names for kind in KINDS]))


if __name__ == "__main__":
    main()
