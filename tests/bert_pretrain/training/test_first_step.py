"""The comparison at the first step: fast paths that are wrong, put in by hand, are found, and the run goes on right."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bert_pretrain import build
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import ConfigError
from bert_pretrain.model import bert
from bert_pretrain.model.bert import Pieces
from bert_pretrain.model.encoder import run_layer
from bert_pretrain.model.options import SpeedConfig
from bert_pretrain.optim import nvlamb
from bert_pretrain.optim.nvlamb_foreach import foreach_step
from bert_pretrain.training import first_step
from bert_pretrain.training.first_step import first_rows
from bert_pretrain.training.trainer import Trainer
from tests.bert_pretrain.training.test_trainer import trainer_for


def two_steps(trainer: Trainer) -> dict[str, torch.Tensor]:
    trainer.check_fast_paths()
    steps = trainer.data.steps(0)
    for _ in range(2):
        trainer.train_step(next(steps))
    steps.close()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_step, "DEVICES", ("cpu",))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("optimizer", ["nvlamb", "adamw"])
def test_what_is_right_is_kept_and_the_comparison_leaves_no_trace(
    tmp_path: Path, shard_dir: Path, monkeypatch, capsys, optimizer: str
) -> None:
    options = f"optimizer={optimizer}", "model.attention=sdpa", "model.hidden_dropout_prob=0.1"
    expected = two_steps(trainer_for(tmp_path / "plain", shard_dir, *options))
    monkeypatch.setattr(first_step, "DEVICES", ("cpu",))
    trainer = trainer_for(tmp_path / "guarded", shard_dir, *options)
    capsys.readouterr()
    assert same(two_steps(trainer), expected)
    assert "step" not in vars(trainer.optimizer)
    assert {int(own["step"]) for own in trainer.optimizer.state.values()} == {2}
    found = capsys.readouterr().out.splitlines()
    assert found == [
        "the fused loss and attention sdpa agree with plain PyTorch on a micro-batch",
        "optimizer kernel fused: the first update agrees with that of foreach",
    ]


def without_a_layer(work: Any) -> Any:
    """A wrong reduction: ||G|| lacks a layer."""
    return foreach_step(replace(work, norm_grads=work.norm_grads[1:]))


def nan(work: Any) -> Any:
    outcome = foreach_step(work)
    work.parts[-1].weights[-1].view(-1)[-1] = float("nan")
    return outcome


def breaks_off(work: Any) -> Any:
    foreach_step(work)
    raise RuntimeError("CUDA error: invalid device function")


KERNEL_FAULTS: list[tuple[Callable[[Any], Any], str]] = [
    (without_a_layer, "differ from foreach's by"),
    (nan, "weights of bert."),
    (breaks_off, "RuntimeError: CUDA error: invalid device function"),
]


@pytest.mark.parametrize(("kernel", "text"), KERNEL_FAULTS)
def test_a_wrong_nvlamb_kernel_is_replaced_by_foreach(
    tmp_path: Path, shard_dir: Path, monkeypatch, capsys, guarded: None, kernel: Callable[[Any], Any], text: str
) -> None:
    expected = two_steps(trainer_for(tmp_path / "plain", shard_dir, "optimizer.kernel=foreach"))
    trainer = trainer_for(tmp_path / "guarded", shard_dir)
    monkeypatch.setitem(nvlamb.KERNELS, "fused", kernel)
    capsys.readouterr()
    assert same(two_steps(trainer), expected)
    assert trainer.optimizer.kernel == "foreach"
    assert not trainer.optimizer.nonfinite_state
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("optimizer kernel fused: ")
    assert text in last
    assert last.endswith("; the run goes on with kernel=foreach")


PAIR = ("optimizer=muon_nvlamb",)


def test_both_of_two_optimizers_are_compared_and_it_leaves_no_trace(
    tmp_path: Path, shard_dir: Path, monkeypatch, capsys
) -> None:
    expected = two_steps(trainer_for(tmp_path / "plain", shard_dir, *PAIR))
    monkeypatch.setattr(first_step, "DEVICES", ("cpu",))
    trainer = trainer_for(tmp_path / "guarded", shard_dir, *PAIR)
    capsys.readouterr()
    assert same(two_steps(trainer), expected)
    assert not any("step" in vars(part) for part in trainer.optimizer.parts)
    assert {int(own["step"]) for own in trainer.optimizer.state.values() if "step" in own} == {2}
    assert "optimizer kernel fused: the first update agrees" in capsys.readouterr().out


@pytest.mark.parametrize("kernel", [nan, breaks_off])  # the norm is measured outside
def test_a_wrong_kernel_of_one_of_two_optimizers_is_replaced(
    tmp_path: Path, shard_dir: Path, monkeypatch, capsys, guarded: None, kernel: Callable[[Any], Any]
) -> None:
    monkeypatch.setattr(first_step, "DEVICES", ())
    expected = two_steps(trainer_for(tmp_path / "plain", shard_dir, *PAIR, "optimizer.others.kernel=foreach"))
    monkeypatch.setattr(first_step, "DEVICES", ("cpu",))
    trainer = trainer_for(tmp_path / "guarded", shard_dir, *PAIR)
    monkeypatch.setitem(nvlamb.KERNELS, "fused", kernel)
    capsys.readouterr()
    assert same(two_steps(trainer), expected)
    assert [part.kernel for part in trainer.optimizer.parts] == ["foreach", "foreach"]
    assert "optimizer kernel fused: " in capsys.readouterr().out


@pytest.mark.parametrize("kernel", [without_a_layer, breaks_off])
def test_moments_and_step_counts_of_a_resumed_run_are_kept(
    tmp_path: Path, shard_dir: Path, monkeypatch, guarded: None, kernel: Callable[[Any], Any]
) -> None:
    """One step with the right kernel, then two more: with ``foreach``, and with a fault that the comparison finds."""

    def finish(trainer: Trainer, change: Callable[[], None]) -> list[torch.Tensor]:
        steps = trainer.data.steps(0)
        trainer.train_step(next(steps))
        change()
        for _ in range(2):
            trainer.train_step(next(steps))
        steps.close()
        states = trainer.optimizer.state.values()
        return [*trainer.model.parameters(), *(own[key] for own in states for key in ("step", "exp_avg", "exp_avg_sq"))]

    plain, trainer = trainer_for(tmp_path / "plain", shard_dir), trainer_for(tmp_path / "guarded", shard_dir)
    expected = finish(plain, lambda: setattr(plain.optimizer, "kernel", "foreach"))

    def break_it() -> None:
        monkeypatch.setitem(nvlamb.KERNELS, "fused", kernel)
        trainer.check_fast_paths()

    assert all(a.equal(b) for a, b in zip(finish(trainer, break_it), expected, strict=True))


@pytest.mark.parametrize("fault", ["wrong", "nan", "error"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_wrong_kernel_of_torch_is_replaced_by_foreach(
    tmp_path: Path, shard_dir: Path, monkeypatch, capsys, guarded: None, optimizer: str, fault: str
) -> None:
    """``foreach`` is the same update up to rounding."""
    options = f"optimizer={optimizer}", "optimizer.max_grad_norm=0.01"
    monkeypatch.setattr(first_step, "DEVICES", ())
    expected = two_steps(trainer_for(tmp_path / "plain", shard_dir, *options))
    monkeypatch.setattr(first_step, "DEVICES", ("cpu",))
    module = import_module("torch.optim.sgd" if optimizer == "sgd" else "torch.optim.adam")
    name = "_fused_sgd" if optimizer == "sgd" else "_fused_adam"
    original = getattr(module, name)

    def faulty(params: list[torch.Tensor], *args: Any, **options: Any) -> None:
        original(params, *args, **options)
        if fault == "error":
            raise RuntimeError("no kernel image is available")
        params[3].mul_(float("nan") if fault == "nan" else 1.01)

    monkeypatch.setattr(module, name, faulty)
    trainer = trainer_for(tmp_path / "guarded", shard_dir, *options)
    capsys.readouterr()
    found = two_steps(trainer)
    assert "the run goes on with kernel=foreach" in capsys.readouterr().out
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)
    assert all(group["fused"] for group in trainer.optimizer.param_groups)


def test_a_skipped_first_step_is_compared_later(tmp_path: Path, shard_dir: Path, capsys, guarded: None) -> None:
    trainer = trainer_for(tmp_path, shard_dir)
    trainer.check_fast_paths()
    steps = trainer.data.steps(0)

    def spoil(*_: Any) -> None:
        next(trainer.model.parameters()).grad.fill_(float("inf"))

    hook = trainer.optimizer.register_step_pre_hook(spoil)
    trainer.train_step(next(steps))
    hook.remove()
    assert "the first update" not in capsys.readouterr().out
    trainer.train_step(next(steps))
    steps.close()
    assert "the first update agrees" in capsys.readouterr().out
    assert {int(own["step"]) for own in trainer.optimizer.state.values()} == {1}


@pytest.mark.parametrize("fault", ["wrong", "nan", "error"])
@pytest.mark.parametrize("own_layers", ["true", "false"])
def test_wrong_sdpa_is_replaced_by_eager(
    tmp_path: Path, shard_dir: Path, monkeypatch, capsys, guarded: None, fault: str, own_layers: str
) -> None:
    names = "last_layer_rows", "fused_qkv", "fast_dropout"
    options = [f"speed.{name}={own_layers}" for name in names]
    expected = two_steps(trainer_for(tmp_path / "plain", shard_dir, "model.attention=eager", *options))
    attend = F.scaled_dot_product_attention

    def faulty(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if fault == "error":
            raise RuntimeError("no available kernel")
        out = attend(query, *args, **options)
        return out * float("nan") if fault == "nan" else out * 1.1

    monkeypatch.setattr(F, "scaled_dot_product_attention", faulty)
    trainer = trainer_for(tmp_path / "guarded", shard_dir, "model.attention=sdpa", *options)
    capsys.readouterr()
    assert same(two_steps(trainer), expected)
    assert "attention sdpa: " in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["mean", "nan", "error"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_wrong_compiled_code_is_replaced_by_eager(
    tmp_path: Path, shard_dir: Path, capsys, guarded: None, fault: str, dropout: float
) -> None:
    options = f"model.hidden_dropout_prob={dropout}", f"model.attention_probs_dropout_prob={dropout}"
    expected = two_steps(trainer_for(tmp_path / "plain", shard_dir, *options))
    trainer = trainer_for(tmp_path / "guarded", shard_dir, *options)

    def faulty(*args: Any) -> torch.Tensor:
        if fault == "error":
            raise RuntimeError("PTX was compiled with an unsupported toolchain")
        out = run_layer(*args)
        return out * float("nan") if fault == "nan" else out - out.mean(0, keepdim=True)

    trainer.model.pieces = Pieces()._replace(layer=faulty)
    trainer.model.speed = replace(trainer.model.speed, compile=True, cuda_graphs=True)
    capsys.readouterr()
    assert same(two_steps(trainer), expected)
    assert trainer.model.pieces == Pieces()
    assert (trainer.model.speed.compile, trainer.model.speed.cuda_graphs) == (False, False)
    assert "compiled code: " in capsys.readouterr().out


def test_right_compiled_code_with_other_dropout_masks_is_kept(
    tmp_path: Path, shard_dir: Path, capsys, guarded: None
) -> None:
    options = "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1"
    trainer = trainer_for(tmp_path, shard_dir, *options)
    layers = []

    def other(*args: Any) -> torch.Tensor:
        layers.append(torch.rand(7))  # draws, so that its masks are others
        return run_layer(*args)

    trainer.model.pieces = Pieces()._replace(layer=other)
    two_steps(trainer)
    assert trainer.model.pieces.layer is other
    assert "the fused loss and compiled code agree" in capsys.readouterr().out


def test_a_wrong_fused_loss_is_replaced(tmp_path: Path, shard_dir: Path, monkeypatch, guarded: None) -> None:
    expected = two_steps(trainer_for(tmp_path / "plain", shard_dir, "speed.fused_loss=false"))
    trainer = trainer_for(tmp_path / "guarded", shard_dir)
    original = bert.vocabulary_loss

    def mean(x: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, correct = original(x, *args)
        return loss / len(x), correct

    monkeypatch.setattr(bert, "vocabulary_loss", mean)
    assert same(two_steps(trainer), expected)


def test_a_fault_on_one_rank_moves_all(tmp_path: Path, shard_dir: Path, monkeypatch, capsys, guarded: None) -> None:
    """This rank finds nothing wrong; the other of two reports a fault of everything."""
    expected = two_steps(
        trainer_for(tmp_path / "plain", shard_dir, "optimizer.kernel=foreach", "speed.fused_loss=false")
    )
    trainer = trainer_for(tmp_path / "guarded", shard_dir, "model.attention=sdpa")
    monkeypatch.setattr(World, "gather", lambda _, item: [item, item or "it is wrong"])
    capsys.readouterr()
    assert same(two_steps(trainer), expected)
    found = capsys.readouterr().out
    assert found.count("it is wrong") == 3
    assert "optimizer kernel fused on rank 1: it is wrong; the run goes on with kernel=foreach" in found


def test_ranks_with_different_kernels_all_use_foreach(
    tmp_path: Path, shard_dir: Path, monkeypatch, capsys, guarded: None
) -> None:
    trainer = trainer_for(tmp_path, shard_dir)
    monkeypatch.setattr(World, "gather", lambda _, item: [item, "foreach" if item == "fused" else item])
    two_steps(trainer)
    assert trainer.optimizer.kernel == "foreach"
    assert "optimizer.kernel=auto is foreach and fused on different ranks: foreach" in capsys.readouterr().out


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_first_rows_of_a_micro_batch_keep_what_is_theirs(tmp_path: Path, shard_dir: Path, packing: str) -> None:
    """The masked tokens of the first row; all rows are the micro-batch. A packed one stays whole."""
    options = f"speed.packing={packing}", "model.hidden_dropout_prob=0", "model.attention_probs_dropout_prob=0"
    trainer = trainer_for(tmp_path, shard_dir, *options)
    batch = next(trainer.data.micro_batches(0))
    head = first_rows(batch, 1)
    if packing == "true":  # its samples go over the ends of rows
        assert head is batch
        return
    assert len(head.input_ids) == 1
    assert first_rows(batch, 10**3).tensors()[0].equal(batch.input_ids)
    length = batch.input_ids.shape[1]
    real = (batch.masked_labels >= 0) & (batch.masked_positions < length)
    assert int((head.masked_labels >= 0).sum()) == int(real.sum()) > 0
    whole = trainer.model(*batch.tensors())
    again = trainer.model(*first_rows(batch, len(batch.input_ids)).tensors())
    assert whole.mlm_loss.equal(again.mlm_loss)
    assert whole.nsp_loss.equal(again.nsp_loss)


def test_a_compiler_that_fails_is_done_without_unless_the_user_asked_for_it(
    tmp_path: Path, shard_dir: Path, monkeypatch, capsys
) -> None:
    """``speed.compile=null`` compiles on GPUs; here the device is made to be one of them."""
    on, calls = SpeedConfig.on, []

    def fail(*_: Any) -> None:
        calls.append(1)
        raise ConfigError("speed.compile is on, but torch could not compile the model (ptxas)")

    monkeypatch.setattr(build, "compile_model", fail)
    monkeypatch.setattr(SpeedConfig, "on", lambda speed, device: replace(on(speed, device), compile=True))
    trainer = trainer_for(tmp_path, shard_dir)
    assert calls == [1]
    assert (trainer.model.speed.compile, trainer.model.pieces, trainer.data.shapes) == (False, Pieces(), None)
    assert "could not compile the model (ptxas); the run goes on without" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="ptxas"):
        trainer_for(tmp_path / "asked", shard_dir, "speed.compile=true")
