"""Torch's variable-length kernels, as packed training calls them.

They exist for GPUs only. On a CPU ``kernels`` below stand in for them: a block-diagonal attention that checks what
torch's C++ checks of its arguments. So everything around the kernels runs here: operators, their derivatives, padding,
compiled code.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from bert_pretrain.data.collate import MicroBatch
from bert_pretrain.data.packing import packed_shapes
from bert_pretrain.errors import ConfigError
from bert_pretrain.model import varlen
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.compile import compile_model
from bert_pretrain.model.options import PrecisionConfig
from bert_pretrain.model.precision import MixedPrecision
from tests.bert_pretrain.model.test_bert import ALL, NONE, build
from tests.bert_pretrain.model.test_packing import arrays_of_many_lengths, losses, packed
from tests.conftest import LENGTH, PREDICTIONS

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's variable-length kernels need a GPU")
PACKED = replace(ALL, packing=True)


def block_diagonal(q, k, v, cu_seqlens, scale: float, p: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Attention of (T, heads, D) over all T x T scores, of which only those within a sample count."""
    owner = torch.bucketize(torch.arange(len(q), device=q.device), cu_seqlens[1:].long(), right=True)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    weights = scores.masked_fill(owner[:, None] != owner, -torch.inf).softmax(-1)
    if p:
        kept = torch.rand(weights.shape, generator=torch.Generator().manual_seed(seed)) >= p
        weights = weights * kept / (1 - p)
    return torch.einsum("hqk,khd->qhd", weights, v)


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
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CPU kernels for both operators; a model on a CPU takes flash."""

    def flash(q, k, v, cu_q, cu_k, max_q, max_k, p, causal, debug, *, scale=None, **_):
        checked(q, k, v, cu_q, cu_k, max_q, max_k)
        assert not causal
        assert not debug
        seed = int(torch.randint(2**31, ())) if p else 0
        nothing = q.new_empty(0)
        state = torch.tensor([seed, 0], dtype=torch.uint64)
        sums = q.new_zeros(q.shape[1], len(q), dtype=torch.float32)
        return block_diagonal(q, k, v, cu_q, scale, p, seed), sums, state, state[0].clone(), nothing

    def flash_backward(
        grad, q, k, v, out, sums, cu_q, cu_k, max_q, max_k, p, causal, state, unused, *, scale=None, **_
    ):
        with torch.enable_grad():
            parts = [part.detach().requires_grad_() for part in (q, k, v)]
            again = block_diagonal(*parts, cu_q, scale, p, int(state[0]))
        assert torch.equal(again, out)
        return torch.autograd.grad(again, parts, grad)

    def efficient(q, k, v, bias, cu_q, cu_k, max_q, max_k, p, mask, sums, *, scale=None, **_):
        assert bias is None
        assert mask == 0
        assert len(q) == 1
        assert sums == torch.is_grad_enabled()
        checked(q[0], k[0], v[0], cu_q, cu_k, max_q, max_k)
        kept = q.new_zeros(len(cu_q) - 1, q.shape[2], -(-max_q // 32) * 32, dtype=torch.float32)
        state = torch.zeros((), dtype=torch.int64)
        return block_diagonal(q[0], k[0], v[0], cu_q, scale)[None], kept, state, state.clone(), max_q, max_k

    def efficient_backward(grad, q, k, v, bias, out, cu_q, *rest, scale=None, **_):
        with torch.enable_grad():
            parts = [part.detach().requires_grad_() for part in (q, k, v)]
            again = block_diagonal(*(part[0] for part in parts), cu_q, scale)
        return *torch.autograd.grad(again, parts, grad[0]), q.new_empty(0)

    library = torch.library.Library("aten", "IMPL")
    for name, kernel in (("flash", flash), ("efficient", efficient)):
        library.impl(f"_{name}_attention_forward", kernel, "CPU")
    library.impl("_flash_attention_backward", flash_backward, "CPU")
    library.impl("_efficient_attention_backward", efficient_backward, "CPU")
    monkeypatch.setattr(varlen, "has_kernel", lambda *_: True)
    monkeypatch.setattr(varlen, "choose", lambda *_: varlen.FLASH)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    library._destroy()


def gradients(model: PretrainingModel, batches: list[MicroBatch]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    found = torch.stack(losses(model, batches))
    return found, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("kernel", [varlen.FLASH, varlen.EFFICIENT])
@pytest.mark.parametrize("all_rows", [False, True])
def test_both_operators_give_the_losses_and_gradients_of_each_sample_alone(
    kernel: str, all_rows: bool, kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches with padding, in float64."""
    model = build(replace(PACKED, last_layer_rows=not all_rows), attention="sdpa").double()
    batches = packed(arrays_of_many_lengths(), 16)
    monkeypatch.setattr(varlen, "choose", lambda *_: varlen.EAGER)
    expected = gradients(model, batches)
    monkeypatch.setattr(varlen, "choose", lambda *_: kernel)
    found = gradients(model, batches)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("kernels")
def test_compiled_for_few_shapes_and_never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of micro-batches of all sizes, with dropout: the same as without compile, and nothing new is compiled."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda piece, options, **how: original(piece, backend="aot_eager", **how))
    shapes = packed_shapes(16, LENGTH, PREDICTIONS)
    mixed = MixedPrecision(PrecisionConfig("fp32", 1.0, 1, False, False), CPU)
    drop = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    plain = build(replace(PACKED, fast_dropout=False), attention="sdpa", num_hidden_layers=1, **drop)
    model = build(replace(PACKED, compile=True), attention="sdpa", num_hidden_layers=1, **drop)
    assert model.speed.packing
    compile_model(model, mixed, shapes, lambda _: None)
    before, seen = dict(counters["stats"])["unique_graphs"], set()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for samples in (40, 33, 25, 9, 4, 1):
            batches = packed({name: part[:samples] for name, part in arrays_of_many_lengths().items()}, 16)
            seen |= {batch.input_ids.shape for batch in batches}
            found = []
            for one in (model, plain):
                torch.manual_seed(2)
                found.append(gradients(one, batches))
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert 4 < len(seen) <= len(shapes) == 8
    assert dict(counters["stats"])["unique_graphs"] == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shapes_and_types_that_torch_infers(dtype: torch.dtype) -> None:
    """Without data, on torch's own description of both operators: T tokens of 12 heads of 64, and their gradients."""
    for kernel in (varlen.FLASH, varlen.EFFICIENT):
        joined = torch.empty(1024, 3, 12, 64, device="meta", dtype=dtype, requires_grad=True)
        ends = torch.empty(33, device="meta", dtype=torch.int32)
        out = varlen.attend(*joined.unbind(1), ends, 128, 0.1, 0.125, kernel)
        assert (out.shape, out.dtype) == ((1024, 12, 64), dtype)
        out.backward(torch.empty_like(out))
        assert (joined.grad.shape, joined.grad.dtype) == (joined.shape, dtype)


@pytest.mark.parametrize(
    ("capability", "dtype", "head", "expected"),
    [
        ((9, 0), torch.bfloat16, 64, varlen.FLASH),
        ((8, 0), torch.float16, 192, varlen.FLASH),
        ((9, 0), torch.bfloat16, 256, varlen.EFFICIENT),
        ((9, 0), torch.float32, 64, varlen.EFFICIENT),
        ((7, 0), torch.float16, 64, varlen.EFFICIENT),
        ((9, 0), torch.bfloat16, 20, varlen.EAGER),
        ((9, 0), torch.float64, 64, varlen.EAGER),
    ],
)
def test_choice_of_kernel(
    capability: tuple, dtype: torch.dtype, head: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert varlen.choose(torch.device("cuda"), "sdpa", head, dtype) == expected
    assert varlen.choose(torch.device("cuda"), "eager", head, dtype) == varlen.EAGER
    assert varlen.choose(CPU, "sdpa", head, dtype) == varlen.EAGER


def test_packing_where_no_kernel_serves() -> None:
    """By default grouped padding on a CPU; packed and compiled is refused, packed alone runs."""
    assert build(replace(ALL, packing=None)).speed.packing is False
    assert build(replace(ALL, packing=True)).speed.packing is True
    assert replace(NONE, packing=None).on(torch.device("cuda")).packing is True
    with pytest.raises(ConfigError, match=r"speed\.packing is True; allowed: false; to be compiled it needs a GPU"):
        build(replace(ALL, packing=True, compile=True))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("kernel", "dtype", "tolerance"),
    [
        (varlen.FLASH, torch.bfloat16, 2e-2),
        (varlen.FLASH, torch.float16, 3e-3),
        (varlen.EFFICIENT, torch.float16, 3e-3),
        (varlen.EFFICIENT, torch.float32, 3e-3),  # TF32 inside
    ],
)
def test_kernels_on_a_gpu_against_block_diagonal(kernel: str, dtype: torch.dtype, tolerance: float) -> None:
    """Output and gradients; samples without tokens; other words in one sample leave the others bitwise the same."""
    torch.manual_seed(1)
    ends = torch.tensor([0, 1, 128, 128, 165, 293, 421, 448, 512, 512], dtype=torch.int32, device="cuda")
    joined = torch.randn(512, 3, 12, 64, device="cuda", dtype=torch.float64)
    given, exact = joined.to(dtype).requires_grad_(), joined.to(dtype).double().requires_grad_()
    out = varlen.attend(*given.unbind(1), ends, 128, 0.0, 0.125, kernel)
    expected = block_diagonal(*exact.unbind(1), ends, 0.125)
    weights = torch.randn_like(expected)
    out.backward(weights.to(dtype))
    expected.backward(weights)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(given.grad.double(), exact.grad, rtol=0, atol=4 * tolerance)
    changed = given.detach().clone()
    changed[165:293] += 1
    again = varlen.attend(*changed.unbind(1), ends, 128, 0.0, 0.125, kernel)
    assert torch.equal(again[:165], out[:165])
    assert torch.equal(again[293:], out[293:])
    assert not torch.equal(again[165:293], out[165:293])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kernel", [varlen.FLASH, varlen.EFFICIENT])
def test_dropout_on_a_gpu(kernel: str) -> None:
    """With ones as values an output is the sum of the kept weights: about 1, others in each of two equal samples."""
    torch.manual_seed(1)
    one = torch.randn(128, 2, 12, 64, device="cuda", dtype=torch.float16)
    q, k = torch.cat([one, one]).unbind(1)
    v = torch.ones_like(q, requires_grad=True)
    ends = torch.tensor([0, 128, 256], dtype=torch.int32, device="cuda")
    out = varlen.attend(q, k, v, ends, 128, 0.3, 0.125, kernel)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(out[:128], out[128:])
    out.sum().backward()  # each value's gradient sums the kept weights of its column: the same masks, or sums differ
    torch.testing.assert_close(v.grad.sum((0, 2)).float(), out.sum((0, 2)).float(), rtol=1e-2, atol=1.0)


@pytest.mark.gpu
@needs_gpu
def test_a_packed_step_on_a_gpu_is_that_of_each_sample_alone(tmp_path: Path) -> None:
    """Losses and gradients of the whole model in float32: the kernel against sample after sample."""
    model = build(replace(PACKED, fast_dropout=False), attention="sdpa").cuda()
    batches = [batch.to(torch.device("cuda")) for batch in packed(arrays_of_many_lengths(), 16)]
    found = gradients(model, batches)
    model.bert.config._attn_implementation = "eager"
    torch.testing.assert_close(found, gradients(model, batches), rtol=1e-3, atol=1e-3)
