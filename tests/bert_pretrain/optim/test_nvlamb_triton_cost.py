"""What a step of the Triton kernels costs, as far as it can be known without a GPU, and what it asks of the host.

Counted: launches, bytes that loads and stores ask for (in the interpreter), copies to the device. Read from the
machine code for sm_90: widths of accesses, registers, spills.
"""

import json
import os
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from bert_pretrain.optim import NVLamb, nvlamb, nvlamb_triton, nvlamb_triton_plan
from bert_pretrain.optim.nvlamb_triton_plan import program_lists
from tests.conftest import ROOT

interpreter = pytest.importorskip("triton.runtime.interpreter", reason="triton is not installed")
BERT_LAYERS = [30522 * 64, 64, 64, *[64 * 64, 64] * 12, 64 * 256, 256, 3]
needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="counts in the interpreter")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What came out of the compiler, by kernel and kind."""
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/bert_pretrain/optim/triton_compile_worker.py")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return {(row["kernel"], row["kind"]): row for row in json.loads(done.stdout)}


@pytest.mark.parametrize("kind", ["float32", "bf16", "fp16"])
def test_machine_code_for_sm_90(rows, kind):
    """A thread has eight elements of a block: two accesses of 128 bits to each float32 array."""
    float32 = kind == "float32"
    for kernel, loads, stores, registers in (
        ("norm_kernel", 2 if float32 else 1, 0, 64),
        ("update_kernel", 8 if float32 else 6, 4, 128),
        ("apply_kernel", 6, 2, 64),
        ("persistent_kernel", 14 if float32 else 12, 6, nvlamb_triton.REGISTERS),
    ):
        row = rows[kernel, kind]
        assert (row["wide_loads"], row["wide_stores"]) == (loads, stores), row
        assert (row["stack"], row["local"]) == (0, 0), row  # no spills
        assert row["registers"] <= registers, row
        assert row["barriers"] == 0, row  # threads stream on their own
        assert row["shared"] <= 8192, row
        if kernel != "persistent_kernel":
            assert row["atomics"] == []
    # The programs of the persistent form fit together: 65,536 registers a multiprocessor.
    threads = 32 * nvlamb_triton.WARPS
    assert nvlamb_triton.RESIDENT * threads * rows["persistent_kernel", kind]["registers"] <= 65536


class Counter:
    """A kernel that counts its launches."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        self.launches.append(self.kernel)
        return self.kernel[grid]


def step_of(params, form, monkeypatch, **options):
    monkeypatch.setitem(nvlamb.KERNELS, "fused", lambda work: nvlamb_triton.fused_step(work, form))
    optimizer = NVLamb(params, 0.01, kernel="fused", **options)
    for param in params:
        param.grad = torch.ones_like(param)
    return optimizer


@needs_interpreter
@pytest.mark.parametrize(("form", "expected"), [("three_launch", 3), ("persistent", 2)])
def test_launches_of_a_step(form, expected, monkeypatch):
    """However many layers; a second kind of layers has its own."""
    launches = []
    for name in ("norm_kernel", "update_kernel", "apply_kernel", "persistent_kernel"):
        kernel = getattr(nvlamb_triton.kernels, name)
        monkeypatch.setattr(nvlamb_triton.kernels, name, Counter(kernel, launches))
    params = [torch.ones(n, requires_grad=True) for n in (1, 3, 40_000, *[5] * 7)]
    step_of(params, form, monkeypatch).step()
    assert len(launches) == expected
    params[0] = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    launches.clear()
    step_of(params, form, monkeypatch).step()
    assert len(launches) == 2 * expected


@needs_interpreter
@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, 44), (torch.bfloat16, 42)])
@pytest.mark.parametrize("form", nvlamb_triton.FORMS)
def test_bytes_that_a_step_asks_for(form, dtype, expected, monkeypatch):
    """The persistent form asks for as many; of its 12 in the second reading, the cache gives what it has."""
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
    step_of(params, form, monkeypatch).step()
    elements = sum(param.numel() for param in params)
    written = 12 if dtype == torch.float32 else 14
    tables = 0.25 if form == "three_launch" else 0.6
    assert expected <= (asked["load"] + asked["store"]) / elements < expected + tables
    assert written <= asked["store"] / elements < written + 0.1


@needs_interpreter
def test_nothing_is_sent_to_the_device_unless_it_moved(monkeypatch):
    sent = []
    original = nvlamb_triton_plan.upload
    monkeypatch.setattr(nvlamb_triton_plan, "upload", lambda *given: sent.append(given) or original(*given))
    params = [torch.ones(n, requires_grad=True) for n in (5, 3000)]
    optimizer = step_of(params, "three_launch", monkeypatch)
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


def lists_for(chunk, programs, start=0):
    first = [start, *(start + np.cumsum([-(-size // chunk) for size in BERT_LAYERS])).tolist()]
    return first, program_lists(first, programs)


@pytest.mark.parametrize(("programs", "start"), [(1, 0), (7, 0), (132, 5), (5000, 0)])
def test_every_chunk_is_updated_and_then_applied_by_one_program(programs, start):
    first, lists = lists_for(8192, programs, start)
    seen = []
    for each in lists:
        items = [int(item) for item in each if item >= 0]
        assert all(item == -1 for item in each[len(items) :])
        updated = [item // 2 for item in items if item % 2 == 0]
        assert sorted(updated) == sorted(item // 2 for item in items if item % 2 == 1)
        assert all(items.index(2 * chunk) < items.index(2 * chunk + 1) for chunk in updated)
        seen += updated
    assert sorted(seen) == list(range(first[0], first[-1]))


def finishes(lists, first, order):
    """Run the lists item by item, the program of each turn chosen by ``order``; an apply waits for its layer."""
    layer_of = {chunk: i for i, (a, b) in enumerate(pairwise(first)) for chunk in range(a, b)}
    left = [b - a for a, b in pairwise(first)]
    position, waiting = [0] * len(lists), set()
    running = set(range(len(lists)))
    while running - waiting:
        program = order(sorted(running - waiting))
        item = lists[program][position[program]] if position[program] < len(lists[program]) else -1
        if item < 0:
            running.discard(program)
        elif item % 2 == 1 and left[layer_of[item // 2]]:
            waiting.add(program)
        else:
            if item % 2 == 0:
                left[layer_of[item // 2]] -= 1
                waiting.clear()
            position[program] += 1
    return not running


@pytest.mark.parametrize("order", [min, max, random.Random(0).choice])
def test_programs_of_the_persistent_form_never_wait_in_a_circle(order):
    """Whichever program runs when, as long as all are resident."""
    first, lists = lists_for(8192, 11)
    assert finishes(lists, first, order)
    swapped = np.full_like(lists, -1)
    for row, each in zip(swapped, lists, strict=True):
        own = each[each >= 0]
        row[: len(own)] = sorted(own, key=lambda item: item % 2 == 0)  # applies first
    assert not finishes(swapped, first, order)
