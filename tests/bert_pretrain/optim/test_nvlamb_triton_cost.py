"""The cost of a step of the Triton kernels, as far as it can be known without a GPU.

Counted in the interpreter: launches, bytes loaded and stored, copies to the device. Read from the machine code for a
few targets (scripts/prove_targets.py: for all): widths of accesses, registers, spills.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch

from bert_pretrain.optim import NVLamb, nvlamb, nvlamb_triton, nvlamb_triton_plan
from tests.conftest import HANGS, ROOT

interpreter = pytest.importorskip("triton.runtime.interpreter", reason="triton is not installed")
needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="counted in the interpreter")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Rows of properties of the compiled kernels, and of kernels with a fault."""
    folders = os.pathsep.join((str(ROOT), str(ROOT / "scripts")))
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache, "PYTHONPATH": folders}
    command = [sys.executable, str(ROOT / "tests/bert_pretrain/optim/triton_compile_worker.py")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


REGISTERS = {"norm_kernel": 64, "update_kernel": 128, "apply_kernel": 80}
"""At most; with 128, two programs of 256 threads fit on a multiprocessor."""
ACCESSES = {
    "cuda float32": {"norm_kernel": (2, 0), "update_kernel": (8, 4), "apply_kernel": (6, 2)},
    "cuda low": {"norm_kernel": (1, 0), "update_kernel": (6, 4), "apply_kernel": (6, 2)},
    "hip float32": {"norm_kernel": (1, 1), "update_kernel": (4, 2), "apply_kernel": (3, 1)},  # norm: clears the report
}
"""Wide loads and stores: a thread has eight elements of a block, so two accesses of 128 bits to each float32 array; on
AMD, whose programs have twice the threads, four elements and one access."""


def test_machine_code(compiled):
    assert len(compiled["rows"]) == 12
    for row in compiled["rows"]:
        assert "refused" not in row, row
        low = row["target"] in ("sm_90", "sm_120")  # compiled for bf16 and fp16 there
        if row["target"] == "gfx942" and version("triton").startswith("3.6."):
            continue  # there AMD's accesses are narrower, with barriers: slower, not wrong
        kind = "hip float32" if row["target"] == "gfx942" else "cuda low" if low else "cuda float32"
        assert (row["wide_loads"], row["wide_stores"]) == ACCESSES[kind][row["kernel"]], row
        assert row["local_bytes"] == 0, row  # no spills
        assert row["registers"] <= REGISTERS[row["kernel"]], row
        assert row["barriers"] == 0, row  # no thread waits for another inside the loop
        assert row["shared_bytes"] <= 8192, row
        assert row["atomics"] == 0, row
        assert row["narrow_offsets"] == 0, row


def test_offsets_of_32_bits_are_found_in_compiled_code(compiled):
    found = {row["kernel"]: row["narrow_offsets"] for row in compiled["with a fault"]}
    assert found == {"norm_kernel": 2, "update_kernel": 8, "apply_kernel": 6}  # each array, aligned or not


class Counter:
    """A kernel that counts its launches."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        self.launches.append(self.kernel)
        return self.kernel[grid]


def step_of(params, monkeypatch):
    monkeypatch.setitem(nvlamb.KERNELS, "fused", nvlamb_triton.fused_step)
    optimizer = NVLamb(params, 0.01, kernel="fused")
    for param in params:
        param.grad = torch.ones_like(param)
    return optimizer


@needs_interpreter
def test_launches_of_a_step(monkeypatch):
    """Three, however many layers; three more for a second kind of layers."""
    launches = []
    import bert_pretrain.optim.nvlamb_triton_kernels as kernels

    for name in ("norm_kernel", "update_kernel", "apply_kernel"):
        monkeypatch.setattr(kernels, name, Counter(getattr(kernels, name), launches))
    params = [torch.ones(n, requires_grad=True) for n in (1, 3, 40_000, *[5] * 7)]
    step_of(params, monkeypatch).step()
    assert len(launches) == 3
    params[0] = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    launches.clear()
    step_of(params, monkeypatch).step()
    assert len(launches) == 6


@needs_interpreter
@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, 44), (torch.bfloat16, 42)])
def test_bytes_that_a_step_moves(dtype, expected, monkeypatch):
    asked = {"load": 0, "store": 0}
    builder = interpreter.InterpreterBuilder

    def counted(kind, original):
        def access(self, places, *arguments):
            mask = arguments[1 if kind == "store" else 0]
            width = {"int1": 8}.get(str(places.get_element_ty()), places.get_element_ty().primitive_bitwidth) // 8
            asked[kind] += int(np.sum(mask.data)) * width
            return original(self, places, *arguments)

        return access

    for kind in asked:
        original = getattr(builder, f"create_masked_{kind}")
        monkeypatch.setattr(builder, f"create_masked_{kind}", counted(kind, original))
    params = [torch.ones(n, dtype=dtype, requires_grad=True) for n in (300_000, 77_777, 1025)]
    step_of(params, monkeypatch).step()
    elements = sum(param.numel() for param in params)
    written = 12 if dtype == torch.float32 else 14
    assert expected <= (asked["load"] + asked["store"]) / elements < expected + 0.25
    assert written <= asked["store"] / elements < written + 0.1


@needs_interpreter
def test_tables_are_copied_to_the_device_only_when_they_change(monkeypatch):
    sent = []
    original = nvlamb_triton_plan.upload
    monkeypatch.setattr(nvlamb_triton_plan, "upload", lambda *given: sent.append(given) or original(*given))
    params = [torch.ones(n, requires_grad=True) for n in (5, 3000)]
    optimizer = step_of(params, monkeypatch)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, dtype=torch.float64)
    optimizer.step()
    assert len(sent) == 3  # layer of each chunk, layers, groups
    sent.clear()
    optimizer.param_groups[0]["lr"].mul_(0.5)
    optimizer.step()
    assert not sent
    params[1].grad = params[1].grad.clone()
    optimizer.step()
    assert len(sent) == 1
    sent.clear()
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert len(sent) == 1
    sent.clear()
    params[0].grad = None
    optimizer.step()
    assert len(sent) == 3
