"""Torch's variable-length flash kernel, as packed training calls it.

It exists for GPUs only. On a CPU ``kernel`` below stands in for it: a block-diagonal attention that checks what torch's
C++ checks of its arguments. So everything around it runs here: torch's operator and its derivative, padding, compiled
code.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from bert_pretrain.data.collate import MicroBatch
from bert_pretrain.data.packing import packed_shapes
from bert_pretrain.errors import ConfigError
from bert_pretrain.model import varlen
from bert_pretrain.model.bert import PretrainingModel, resolve_packing
from bert_pretrain.model.compile import compile_model
from bert_pretrain.model.options import PrecisionConfig
from bert_pretrain.model.precision import MixedPrecision
from tests.bert_pretrain.model.test_bert import ALL, NONE, build, tiny
from tests.bert_pretrain.model.test_packing import arrays_of_many_lengths, losses, packed
from tests.conftest import LENGTH, PREDICTIONS

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's variable-length kernels need a GPU")
PACKED = replace(ALL, packing=True)


def block_diagonal(q, k, v, cu_seqlens, scale: float) -> torch.Tensor:
    """Attention of (T, heads, D) over all T x T scores, of which only those within a sample count."""
    return torch.einsum("hqk,khd->qhd", weights_within(q, k, cu_seqlens, scale), v)


def weights_within(q, k, cu_seqlens, scale: float) -> torch.Tensor:
    """Attention weights, (heads, T, T), 0 between samples."""
    owner = torch.bucketize(torch.arange(len(q), device=q.device), cu_seqlens[1:].long(), right=True)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    return scores.masked_fill(owner[:, None] != owner, -torch.inf).softmax(-1)


def kept(shape: torch.Size, p: float, seed: int) -> torch.Tensor:
    """Factors of dropout."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= p) / (1 - p)


def checked(q, k, v, cu_q, cu_k, longest_q, longest_k) -> None:
    """What torch checks in mha_varlen_fwd, and what it silently relies on."""
    for part in (q, k, v):
        assert part.dim() == 3
        assert part.shape == q.shape
        assert part.dtype == q.dtype
        assert part.stride(-1) == 1
    for ends in (cu_q, cu_k):
        assert ends.dtype == torch.int32
        assert ends.is_contiguous()
        assert ends[0] == 0
        assert ends[-1] == len(q), "tokens outside of every sample stay undefined"
        assert 0 <= ends.diff().min() <= ends.diff().max() <= longest_q == longest_k


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU kernel of the operator, which models on a CPU then take."""

    def flash(q, k, v, cu_q, cu_k, max_q, max_k, p, causal, debug, *, scale=None, **_):
        checked(q, k, v, cu_q, cu_k, max_q, max_k)
        assert not causal
        assert not debug
        seed = int(torch.randint(2**31, ())) if p else 0
        nothing = q.new_empty(0)
        state = torch.tensor([seed, 0], dtype=torch.uint64)
        sums = q.new_zeros(q.shape[1], len(q), dtype=torch.float32)
        weights = weights_within(q, k, cu_q, scale)
        out = torch.einsum("hqk,khd->qhd", weights * kept(weights.shape, p, seed).to(q.dtype), v)
        return out.contiguous(), sums, state, state[0].clone(), nothing

    def flash_backward(grad, q, k, v, out, sums, cu_q, cu_k, max_q, max_k, p, causal, state, *_, scale=None, **__):
        weights = weights_within(q, k, cu_q, scale)
        factors = kept(weights.shape, p, int(state[0])).to(q.dtype)
        above = torch.einsum("qhd,khd->hqk", grad, v) * factors
        below = weights * (above - (above * weights).sum(-1, keepdim=True)) * scale
        own = torch.einsum("hqk,khd->qhd", below, k), torch.einsum("hqk,qhd->khd", below, q)
        every = *own, torch.einsum("hqk,qhd->khd", weights * factors, grad)
        return tuple(part.contiguous() for part in every)

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", flash, "CPU")
    library.impl("_flash_attention_backward", flash_backward, "CPU")
    monkeypatch.setattr(varlen, "has_kernel", lambda *_: True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    library._destroy()


def gradients(model: PretrainingModel, batches: list[MicroBatch]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    found = torch.stack(losses(model, batches))
    return found, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("next_sentence", [True, False])
@pytest.mark.parametrize("all_rows", [True, False])
@pytest.mark.usefixtures("kernel")
def test_losses_and_gradients_are_those_of_each_sample_alone(
    all_rows: bool, next_sentence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches with padding, in float64."""
    model = build(replace(PACKED, last_layer_rows=not all_rows), attention="sdpa", next_sentence=next_sentence).double()
    batches = packed(arrays_of_many_lengths(), 16)
    assert len(batches) == 2
    found = gradients(model, batches)
    monkeypatch.setattr(varlen, "has_kernel", lambda *_: False)
    torch.testing.assert_close(found, gradients(model, batches), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("kernel")
def test_compiled_for_few_shapes_and_never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of micro-batches of all sizes, with dropout: the same as without compile, and nothing new is compiled."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda piece, options, **how: original(piece, backend="aot_eager", **how))
    shapes = packed_shapes(4, LENGTH, PREDICTIONS)
    mixed = MixedPrecision(PrecisionConfig("fp32", 1.0, 1, False, False), CPU)
    drop = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    plain = build(replace(PACKED, fast_dropout=False), attention="sdpa", num_hidden_layers=1, **drop)
    model = build(replace(PACKED, compile=True), attention="sdpa", num_hidden_layers=1, **drop)
    assert model.speed.packing
    compile_model(model, mixed, shapes, lambda _: None)
    before, seen = dict(counters["stats"])["unique_graphs"], set()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for samples in (12, 5, 3, 1):
            batches = packed({name: part[:samples] for name, part in arrays_of_many_lengths().items()}, 4)
            seen |= {batch.input_ids.shape for batch in batches}
            found = []
            for one in (model, plain):
                torch.manual_seed(2)
                found.append(gradients(one, batches))
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert 2 < len(seen) <= len(shapes) == 4
    assert dict(counters["stats"])["unique_graphs"] == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shapes_and_types_that_torch_infers(dtype: torch.dtype) -> None:
    """Without data, on torch's own description of the operator: T tokens of 12 heads of 64, and their gradient."""
    joined = torch.empty(1024, 3, 12, 64, device="meta", dtype=dtype, requires_grad=True)
    ends = torch.empty(33, device="meta", dtype=torch.int32)
    out = varlen.flash(*joined.unbind(1), ends, 128, 0.1, 0.125)
    assert (out.shape, out.dtype) == ((1024, 12, 64), dtype)
    out.backward(torch.empty_like(out))
    assert (joined.grad.shape, joined.grad.dtype) == (joined.shape, dtype)


@pytest.mark.parametrize(
    ("capability", "dtype", "heads", "attention", "flash"),
    [
        ((9, 0), torch.bfloat16, 2, "sdpa", True),
        ((8, 0), torch.float16, 16, "auto", True),
        ((9, 0), torch.bfloat16, 2, "eager", False),
        ((9, 0), torch.float32, 2, "sdpa", False),
        ((7, 5), torch.float16, 2, "sdpa", False),
        ((9, 0), torch.bfloat16, 32, "sdpa", False),  # heads of 4
    ],
)
def test_packing_is_on_by_default_where_the_kernel_runs(
    capability: tuple, dtype: torch.dtype, heads: int, attention: str, flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere samples are grouped and padded; packed and compiled is refused there, packed alone runs."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    shape = tiny(hidden_size=128, num_attention_heads=heads, attention=attention)
    for device, expected in ((torch.device("cuda"), flash), (CPU, False)):
        for wanted in (None, True, False):
            speed = replace(NONE, packing=wanted)
            assert resolve_packing(speed, shape, dtype, device).packing is (expected if wanted is None else wanted)
            if wanted and not expected:
                with pytest.raises(ConfigError, match=r"speed\.packing is True; allowed: false with speed\.compile"):
                    resolve_packing(replace(speed, compile=True), shape, dtype, device)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_kernel_on_a_gpu_against_block_diagonal(dtype: torch.dtype, tolerance: float) -> None:
    """Output and gradients; samples without tokens; other words in one sample leave the others bitwise the same."""
    torch.manual_seed(1)
    ends = torch.tensor([0, 1, 128, 128, 165, 293, 421, 448, 512, 512], dtype=torch.int32, device="cuda")
    joined = torch.randn(512, 3, 12, 64, device="cuda", dtype=torch.float64)
    given, exact = joined.to(dtype).requires_grad_(), joined.to(dtype).double().requires_grad_()
    out = varlen.flash(*given.unbind(1), ends, 128, 0.0, 0.125)
    expected = block_diagonal(*exact.unbind(1), ends, 0.125)
    weights = torch.randn_like(expected)
    out.backward(weights.to(dtype))
    expected.backward(weights)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(given.grad.double(), exact.grad, rtol=0, atol=4 * tolerance)
    changed = given.detach().clone()
    changed[165:293] += 1
    again = varlen.flash(*changed.unbind(1), ends, 128, 0.0, 0.125)
    assert torch.equal(again[:165], out[:165])
    assert torch.equal(again[293:], out[293:])
    assert not torch.equal(again[165:293], out[165:293])


@pytest.mark.gpu
@needs_gpu
def test_dropout_on_a_gpu() -> None:
    """With ones as values an output is the sum of the kept weights: about 1, others in each of two equal samples."""
    torch.manual_seed(1)
    one = torch.randn(128, 2, 12, 64, device="cuda", dtype=torch.float16)
    q, k = torch.cat([one, one]).unbind(1)
    v = torch.ones_like(q, requires_grad=True)
    ends = torch.tensor([0, 128, 256], dtype=torch.int32, device="cuda")
    out = varlen.flash(q, k, v, ends, 128, 0.3, 0.125)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(out[:128], out[128:])
    # A value's gradient sums the kept weights of its column, an output those of its row: the same total.
    out.sum().backward()
    torch.testing.assert_close(v.grad.sum((0, 2)).float(), out.sum((0, 2)).float(), rtol=1e-2, atol=1.0)


@pytest.mark.gpu
@needs_gpu
def test_a_packed_step_on_a_gpu_is_that_of_each_sample_alone() -> None:
    """Losses and gradients of the whole model in bf16: the kernel against each sample alone."""
    model = build(replace(PACKED, fast_dropout=False), attention="sdpa").cuda()
    batches = [batch.to(torch.device("cuda")) for batch in packed(arrays_of_many_lengths(), 16)]
    with torch.autocast("cuda", torch.bfloat16):
        found = gradients(model, batches)
        model.bert.config._attn_implementation = "eager"
        expected = gradients(model, batches)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-2, atol=0)
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one - other).norm() <= 0.05 * max(other.norm(), 1.0)
