"""The compiled model: parity, dropout, and no compilation during training.

On CPU Inductor uses the system's C++ compiler; to save time, only the layers are compiled with it. What does not depend
on generated code (the shapes that are compiled, gradients) is tested with ``aot_eager``, which only traces.
"""

import functools
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters
from torch._inductor.codegen.triton import TritonOverrides

from bert_pretrain.data import collate
from bert_pretrain.data.collate import MicroBatch, Shape, dummy_batch, fixed_shapes, to_fixed_micro_batch
from bert_pretrain.errors import ConfigError
from bert_pretrain.model.bert import Pieces, PretrainingModel
from bert_pretrain.model.compile import compile_model, turn_off_compiling
from bert_pretrain.model.encoder import layer_weights, run_layer
from bert_pretrain.model.options import PrecisionConfig
from bert_pretrain.model.precision import MixedPrecision
from tests.bert_pretrain.model.test_bert import ALL, assert_parity, build
from tests.bert_pretrain.training.test_trainer import rows, trainer_for
from tests.conftest import LENGTH, PREDICTIONS, random_arrays

CPU = torch.device("cpu")
COMPILED = replace(ALL, compile=True)
SHAPE = Shape(8, LENGTH, 8 * PREDICTIONS, has_mask=True)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++ on CPU; there is none here")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Nothing compiled for one test is reused by the next."""
    torch._dynamo.reset()
    # A pool of processes costs more than it saves here, and so does compiling a test of each vector instruction set.
    with torch._inductor.config.patch({"compile_threads": 1, "cpp.vec_isa_ok": True}):
        yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    _compile_by(monkeypatch, inductor=())


@pytest.fixture
def layers_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    _compile_by(monkeypatch, inductor=(run_layer,))


def _compile_by(monkeypatch: pytest.MonkeyPatch, inductor: tuple) -> None:
    """Use Inductor for the functions in ``inductor`` and ``aot_eager`` for the others."""
    original = torch.compile

    def compile_piece(piece, options, **how):
        return original(piece, **how) if piece in inductor else original(piece, backend="aot_eager", **how)

    monkeypatch.setattr(torch, "compile", compile_piece)


def compiled(dtype: torch.dtype, **changes: object) -> PretrainingModel:
    model = build(COMPILED, **changes).to(dtype)
    lines: list[str] = []
    compile_model(model, MixedPrecision(PrecisionConfig("fp32", 1.0, 1, False, False), CPU), [SHAPE], lines.append)
    assert len(lines) == 3, "progress is reported"
    assert all(parameter.grad is None for parameter in model.parameters())
    return model


def batch(samples: int = 6) -> MicroBatch:
    return to_fixed_micro_batch(random_arrays(np.random.default_rng(3), samples), [SHAPE, SHAPE])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.usefixtures("traced")
def test_parity_in_float64_with_all_techniques(attention: str) -> None:
    model = compiled(torch.float64, attention=attention)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_parity(model, batch(), 1e-12)
        assert_parity(model, dummy_batch(SHAPE), 1e-12)  # no masked token


@pytest.mark.parametrize("graphs", [False, True], ids=["cached weights", "no cache"])
@pytest.mark.usefixtures("traced")
def test_compiled_gradients_in_bf16_are_those_of_the_uncompiled_model(
    graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of three micro-batches, with the weight cache and, as with CUDA graphs, without it."""
    mixed = MixedPrecision(PrecisionConfig("bf16", 1.0, 1, False, False), CPU)
    model, found = build(COMPILED), []
    if graphs:
        monkeypatch.setattr(model, "step", nullcontext)
    compile_model(model, mixed, [SHAPE], lambda _: None)
    for pieces in (model.pieces, Pieces()):
        torch.manual_seed(1)
        model.load_state_dict(build(COMPILED).state_dict())
        model.pieces = pieces
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(2):
                with mixed.autocast(), model.step():
                    for samples in (4, 5, 6):
                        out = model(*batch(samples).tensors())
                        with mixed.autocast(enabled=False):
                            (out.mlm_loss + out.nsp_loss).backward()
                gradients = [parameter.grad.clone() for parameter in model.parameters()]
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.01 * parameter.grad
                model.zero_grad(set_to_none=True)
        found.append(gradients)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-2 * max(1.0, other.abs().max().item()))


@needs_compiler
@pytest.mark.usefixtures("layers_compiled")
def test_compiled_dropout_is_alive_and_the_same_in_the_backward() -> None:
    """With a fixed seed the gradient agrees with finite differences; layers and micro-batches have their own masks."""
    model = compiled(torch.float64, num_hidden_layers=1, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)

    def loss() -> torch.Tensor:
        with model.step():
            out = model(*batch().tensors())
        return out.mlm_loss + out.nsp_loss

    torch.manual_seed(5)
    first = loss()
    first.backward()
    assert first != loss(), "two micro-batches have the same mask"
    torch.manual_seed(0)
    steps = [torch.randn_like(parameter) for parameter in model.parameters()]
    slope = sum((step * parameter.grad).sum() for step, parameter in zip(steps, model.parameters(), strict=True))
    ends = []
    for size in (1e-6, -2e-6):
        with torch.no_grad():
            for step, parameter in zip(steps, model.parameters(), strict=True):
                parameter += size * step
        torch.manual_seed(5)
        ends.append(loss().detach())
    assert ((ends[0] - ends[1]) / 2e-6).item() == pytest.approx(slope.item(), rel=1e-5)
    masks_of_two_layers_are_independent(model)


def masks_of_two_layers_are_independent(model: PretrainingModel) -> None:
    """Isolates the last dropout of the layer: it gets ones, and after LayerNorm the dropped elements are negative."""
    layer = model.bert.bert.encoder.layer[0]
    with torch.no_grad():
        layer.attention.output.LayerNorm.weight.zero_()
        layer.attention.output.LayerNorm.bias.zero_()
        layer.output.dense.weight.zero_()
        layer.output.dense.bias.fill_(1.0)
        layer.output.LayerNorm.weight.fill_(1.0)
        layer.output.LayerNorm.bias.zero_()
    x = torch.zeros(SHAPE.samples, SHAPE.length, 16, dtype=torch.float64, requires_grad=True)
    positions = torch.arange(SHAPE.samples * (1 + PREDICTIONS))
    mask = torch.zeros(SHAPE.samples, 1, 1, SHAPE.length)
    with model.step():
        weights = layer_weights(layer, model.speed, model._weight_cache.join)
        given = (layer, weights, x, mask, positions, "eager", model.speed)
        drawn = [model.pieces.layer(*given).detach() < 0 for _ in range(2)]
    for dropped in drawn:
        assert dropped.double().mean().item() == pytest.approx(0.2, abs=0.06)
    both = (drawn[0] & drawn[1]).double().mean().item()
    assert both == pytest.approx(0.04, abs=0.03)


@pytest.mark.usefixtures("traced")
def test_nothing_is_compiled_during_training(tmp_path: Path, shard_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With micro-batches of all lengths, a smaller last one and evaluations; the loss curve is that without compile.

    Packed: in test_varlen.py.
    """
    monkeypatch.setattr(collate, "_FIXED_LENGTHS", 2)
    options = ("batch.global_batch_size=30", "model.num_hidden_layers=1")
    trainer_for(tmp_path / "plain", shard_dir, *options).run()
    trainer = trainer_for(tmp_path / "compiled", shard_dir, "speed.compile=true", *options)
    before = dict(counters["stats"])
    assert before["unique_graphs"] > 0
    seen = set()
    trainer.network.register_forward_pre_hook(lambda _, given: seen.add((given[0].shape, given[3].shape)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        trainer.run()
    assert dict(counters["stats"])["unique_graphs"] == before["unique_graphs"]
    assert len(seen) > 1
    for one, two in zip(rows(tmp_path / "plain"), rows(tmp_path / "compiled"), strict=True):
        name = "loss" if "loss" in one else "eval_loss"
        assert one.get(name) == pytest.approx(two.get(name), rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, for which inductor generates other code")
def test_dropout_masks_on_a_gpu_are_independent() -> None:
    """The fault of pytorch issue 198333: fourfold repetition within a mask."""
    device, shape = torch.device("cuda"), Shape(8, LENGTH, 8 * PREDICTIONS, has_mask=False)
    model = build(COMPILED, hidden_size=256, num_attention_heads=4, hidden_dropout_prob=0.5).to(device)
    compile_model(model, MixedPrecision(PrecisionConfig("bf16", 1.0, 1, True, False), device), [shape], lambda _: None)
    drawn = []
    for _ in range(2):
        ids = torch.zeros(8, LENGTH, dtype=torch.long, device=device)
        out = model.pieces.embed(model.bert.bert.embeddings, ids, ids, None, model.speed)
        drawn.append((out == 0).double())
    for distance in (1, 2, 3, 4, 64):
        for dim in (0, 1, 2):
            if distance < drawn[0].shape[dim]:
                both = drawn[0] * drawn[0].roll(distance, dim)
                assert both.mean().item() == pytest.approx(0.25, abs=0.02), (distance, dim)
    assert (drawn[0] * drawn[1]).mean().item() == pytest.approx(0.25, abs=0.02)


def test_fixed_shapes_hold_the_same_samples() -> None:
    shapes = fixed_shapes(8, LENGTH, PREDICTIONS, trim=True)
    assert [shape.length for shape in shapes] == [4, 8, 12, 16, 16]
    assert [shape.masked for shape in shapes] == [6, 12, 18, 24, 24]
    rng = np.random.default_rng(1)
    for samples in (1, 5, 8):
        arrays = random_arrays(rng, samples)
        found = to_fixed_micro_batch(arrays, shapes)
        kept = found.masked_labels >= 0
        flat = arrays["masked_lm_positions"].nonzero()
        assert found.masked_labels[kept].tolist() == arrays["masked_lm_ids"][flat].tolist()
        where = found.masked_positions[kept]
        assert torch.equal(where // found.input_ids.shape[1], torch.from_numpy(flat[0]))
        assert (found.input_ids.flatten()[where] == 4).all()  # the [MASK] id of random_arrays
        assert found.attention_mask is not None
        assert int(found.attention_mask[:samples].sum()) == arrays["input_mask"].sum()
        assert (found.next_sentence_labels[samples:] == -100).all()
    arrays["input_mask"][:] = 1
    assert to_fixed_micro_batch(arrays, shapes).attention_mask is None


def test_a_failed_compilation_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(piece: object, **_: object) -> object:
        def fail(*given: object) -> None:
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nat all")

        return functools.wraps(piece)(fail)

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"speed\.compile is on, but .*no compiler at all\); it needs .*, setuptools"):
        compiled(torch.float32)


def test_a_model_that_is_not_compiled_has_no_graphs_and_caches_its_weights() -> None:
    model = build(COMPILED)
    model.speed = replace(model.speed, cuda_graphs=True)
    turn_off_compiling(model)
    assert (model.pieces, model.speed.compile, model.speed.cuda_graphs) == (Pieces(), False, False)
    with model.step():
        assert model._weight_cache.in_step


def test_the_message_says_what_the_backend_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only that it has raised, which is the first line of torch's error."""

    def backend(*_: object) -> None:
        raise RuntimeError("no such target\nat all")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda piece, **_: original(piece, backend=backend))
    with pytest.raises(ConfigError, match=r"could not compile the model \(no such target at all\); it needs"):
        compiled(torch.float32)


def test_fourfold_random_numbers_are_off_if_they_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda piece, **_: piece)
    compiled(torch.float32)
    if hasattr(TritonOverrides, "_can_use_4x_random"):
        assert TritonOverrides._can_use_4x_random() is False
        monkeypatch.delattr(TritonOverrides, "_can_use_4x_random")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.14.1"))
    with pytest.raises(ConfigError, match="198333"):
        compiled(torch.float32)


def test_cuda_graphs_need_a_gpu() -> None:
    with pytest.raises(ConfigError, match=r"speed\.cuda_graphs"):
        build(replace(COMPILED, cuda_graphs=True))
