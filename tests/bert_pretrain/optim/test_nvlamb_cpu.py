"""The fused kernel on CPU: how it splits the work, its threads, and what it refuses."""

import copy
import pickle

import numpy as np
import pytest
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import NVLamb, nvlamb_cpu
from bert_pretrain.optim.nvlamb_cpu import Plan
from bert_pretrain.threads import Threads

SIZES = [5, 3_000_000, 1, 700, 250_000, 262_144, 262_145, 40_000]


@pytest.mark.parametrize("number", [1, 2, 7])
def test_every_element_is_in_one_task(number):
    plan = Plan(SIZES, Threads(number))
    rows = [row for begin, end in plan.shared + plan.whole for row in range(begin, end)]
    assert sorted(rows) == list(range(len(plan.pieces)))
    for layer, size in enumerate(SIZES):
        of_layer = [plan.pieces[row] for row in sorted(rows) if plan.pieces[row][0] == layer]
        assert [piece[1] for piece in of_layer] == list(range(0, size, nvlamb_cpu.PIECE))
        assert sum(piece[2] for piece in of_layer) == size
        assert {(piece[3], piece[4]) for piece in of_layer} == {(of_layer[0][3], of_layer[0][3] + len(of_layer))}
    assert bool(plan.shared) == (number > 1)


def trained(threads, monkeypatch, steps=3):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    params = [torch.randn(size).mul_(0.1).requires_grad_() for size in SIZES]
    optimizer = NVLamb(params, 0.01, kernel="fused")
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    return params, optimizer


def test_bitwise_the_same_with_any_number_of_threads(monkeypatch):
    one, _ = trained(1, monkeypatch)
    for threads in (2, 5):
        several, optimizer = trained(threads, monkeypatch)
        assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))
        assert optimizer.workspace["cpu plan"].threads.number == threads


def test_the_number_of_threads_may_change_during_a_run(monkeypatch):
    params, optimizer = trained(2, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    before = params[1].detach().clone()
    optimizer.step()
    assert optimizer.workspace["cpu plan"].threads.number == 3
    assert not torch.equal(before, params[1])


def test_norms_of_each_layer_are_reported(monkeypatch):
    params, optimizer = trained(2, monkeypatch, steps=1)
    start = [p.detach().double().numpy().copy() for p in params]
    torch.manual_seed(1)
    for param in params:
        param.grad = torch.randn_like(param)
    work = []
    original = nvlamb_cpu.fused_step
    monkeypatch.setattr(nvlamb_cpu, "fused_step", lambda w: work.append(original(w)) or work[-1])
    optimizer.step()
    (outcome,) = work
    assert outcome.weight_norms.numpy() == pytest.approx([np.linalg.norm(w) for w in start], rel=1e-6)
    moved = [np.linalg.norm(p.detach().double().numpy() - w) for p, w in zip(params, start, strict=True)]
    # w <- w - lr r u with r = |w|/|u|: the change of every layer has the norm lr |w|
    assert moved == pytest.approx([0.01 * np.linalg.norm(w) for w in start], rel=1e-4)


@pytest.mark.parametrize("what", ["float64", "transposed"])
def test_unsupported_layers_are_refused_and_auto_uses_foreach(what):
    weights = torch.ones(4, 3).t() if what == "transposed" else torch.ones(3, dtype=torch.float64)
    param = weights.clone(memory_format=torch.preserve_format).requires_grad_()
    param.grad = torch.ones_like(param)
    with pytest.raises(ConfigError, match="kernel is 'fused'; allowed: foreach or auto"):
        NVLamb([param], 0.1, kernel="fused").step()
    assert torch.equal(param.detach(), torch.ones_like(param))
    NVLamb([param], 0.1, kernel="auto").step()
    assert param.detach().double().numpy() == pytest.approx(0.9, rel=1e-6)


def test_copies_and_pickles_leave_out_the_threads(monkeypatch):
    _, optimizer = trained(2, monkeypatch, steps=1)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for param in other.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        other.step()


def test_an_error_in_a_thread_is_raised():
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Threads(2).run([fail, fail])
