"""A layer of more than 2^31 elements, and faults put into the Triton kernels by hand: the tests find each of them."""

import mmap
from dataclasses import replace

import numpy as np
import pytest
import torch

from bert_pretrain.optim import nvlamb, nvlamb_triton
from bert_pretrain.optim.layers import Layers, Rules, Work
from bert_pretrain.optim.trust import TrustRatio
from tests.oracles import Oracle, assert_close, build, build_oracle, problem, set_grads

interpreter = pytest.importorskip("triton.runtime.interpreter", reason="triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="faults are put into the interpreter's functions")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from bert_pretrain.optim import nvlamb_triton_blocks as blocks  # noqa: E402
from bert_pretrain.optim import nvlamb_triton_kernels as kernels  # noqa: E402

chunk_of = kernels.chunk_of
LENGTH, TAIL = 2**31 + 5000, 5000


@triton.jit
def narrow_chunk_of(layers, layer_of, chunk, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """The start of a chunk in 32 bits."""
    row, start, size, whole = chunk_of(layers, layer_of, chunk, CHUNK, BLOCK)
    return row, start.to(tl.int32), size, whole


@triton.jit
def sums_of_3(x, BLOCK: tl.constexpr):
    """A wrong reduction: of four neighbouring elements the last is left out."""
    kept = tl.where((tl.arange(0, BLOCK) & 3) < 3, x, 0.0)
    return tl.sum(tl.reshape(kept, [BLOCK // 4, 4]), 1).to(tl.float64)


def of_zeros(length: int) -> torch.Tensor:
    """float32, from memory that takes no room until it is written."""
    no_reserve = 0x4000  # mmap.MAP_NORESERVE, which Python names from 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return torch.frombuffer(mmap.mmap(-1, 4 * length, flags=flags), dtype=torch.float32)


@pytest.fixture
def long_layer(monkeypatch):
    """Weights, gradients and a step of one layer whose last ``TAIL`` elements alone are not zero.

    Its first chunk, which decides for the step, and its last are run. An access outside of the step's tensors raises
    IndexError instead of ending the process.
    """
    weights, grads, exp_avgs, exp_avg_sqs = tensors = [of_zeros(LENGTH) for _ in range(4)]
    rng = np.random.default_rng(0)
    for tensor in (weights, grads):
        tensor[-TAIL:] = torch.from_numpy(rng.standard_normal(TAIL, dtype=np.float32))
    spans = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors]
    plan_for = nvlamb_triton.plan_for

    def plan_of_two_chunks(*given):
        plan = plan_for(*given)
        last = plan.layer_of.numel() - 1
        plan.launches = [
            replace(plan.launches[0], first=first, chunks=1, norm_programs=1, slot=slot)
            for slot, first in enumerate((0, last))
        ]
        plan.partials = torch.zeros(2, dtype=torch.float64)
        plan.sums.zero_()
        return plan

    def guarded(original, mask_at):
        def access(self, places, *arguments):
            used = places.data[arguments[mask_at].data.astype(bool)]
            if str(places.get_element_ty()) == "fp32" and used.size > 1:
                for place in (used.min(), used.max()):
                    if not any(start <= place < end for start, end in spans):
                        raise IndexError("outside of the layer's arrays")
            return original(self, places, *arguments)

        return access

    monkeypatch.setattr(nvlamb_triton, "plan_for", plan_of_two_chunks)
    for name, mask_at in (("create_masked_load", 0), ("create_masked_store", 1)):
        original = getattr(interpreter.InterpreterBuilder, name)
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, guarded(original, mask_at))
    group = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
    layers = Layers(group, [weights], [weights], [grads], [weights], [exp_avgs], [exp_avg_sqs], [torch.zeros(())])
    rules = Rules("unit", 1.0, TrustRatio("all", None, None), bias_correction=False)  # each launch counts the step
    return weights, grads, Work([layers], weights.device, rules, None, None, {}, [grads])


def test_a_layer_of_more_than_2_to_the_31_elements(long_layer):
    weights, grads, work = long_layer
    start = weights[-TAIL:].numpy().copy()
    oracle = Oracle([(start, 0.01, 0.01)], bias_correction=False)
    nvlamb_triton.fused_step(work)
    oracle.step([grads[-TAIL:].numpy()])
    assert_close([weights[-TAIL:]], oracle, [start])


def test_offsets_of_32_bits_are_found(long_layer, monkeypatch):
    monkeypatch.setattr(kernels, "chunk_of", narrow_chunk_of)
    with pytest.raises(interpreter.InterpreterError) as raised:
        nvlamb_triton.fused_step(long_layer[-1])
    assert "outside of the layer" in str(raised.value)


@pytest.mark.parametrize("module", [kernels, blocks], ids=["gradient norm", "layer norms"])
def test_a_wrong_reduction_is_found(module, monkeypatch):
    """By the comparison with the oracle."""
    monkeypatch.setitem(nvlamb.KERNELS, "fused", nvlamb_triton.fused_step)
    monkeypatch.setattr(module, "sums_of_4", sums_of_3)
    weights, gradients = problem()
    params, optimizer = build(weights, "fused")
    oracle = build_oracle(weights)
    set_grads(params, gradients(0))
    optimizer.step()
    oracle.step(gradients(0))
    with pytest.raises(AssertionError):
        assert_close(params, oracle, weights)
