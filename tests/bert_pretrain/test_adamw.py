"""AdamW against an independent float64 numpy form, with clipping, loss scaling and the skip rule."""

import copy

import numpy as np
import pytest
import torch

from bert_pretrain.optim import AdamW


def oracle(weights, steps, lr, decay, clip, b1=0.9, b2=0.999, eps=1e-6):
    """Decoupled decay, bias correction, global clip; ``steps`` is a list of gradient lists."""
    w = [np.float64(x) for x in weights]
    m, v = [0.0 * x for x in w], [0.0 * x for x in w]
    for t, grads in enumerate(steps, start=1):
        norm = np.sqrt(sum(float((np.float64(g) ** 2).sum()) for g in grads))
        s = 1.0 if clip is None else 1 / max(1.0, norm / clip)
        for i, g in enumerate(grads):
            m[i] = b1 * m[i] + (1 - b1) * s * np.float64(g)
            v[i] = b2 * v[i] + (1 - b2) * (s * np.float64(g)) ** 2
            update = m[i] / (1 - b1**t) / (np.sqrt(v[i] / (1 - b2**t)) + eps)
            w[i] = w[i] * (1 - lr * decay) - lr * update
    return w


@pytest.mark.parametrize("scale", [None, 4096.0])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_agrees_with_the_oracle_and_skips_bit_for_bit(clip, scale):
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((30, 7), (5,), (5000,))]
    steps = [
        [(rng.standard_normal(w.shape) * 10.0 ** (k % 3 - 2)).astype(np.float32) for w in weights] for k in range(30)
    ]
    params = [torch.tensor(w, requires_grad=True) for w in weights]
    optimizer = AdamW(params, torch.tensor(0.01), weight_decay=0.1, max_grad_norm=clip)
    for k, grads in enumerate(steps):
        for poisoned in (True, False) if k == 10 else (False,):
            for param, grad in zip(params, grads, strict=True):
                param.grad = torch.tensor(grad * np.float32(scale or 1.0))
            if poisoned:
                params[2].grad[77] = float("inf")
            if scale is not None:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
            before = copy.deepcopy([params, [optimizer.state[p] for p in params]])
            optimizer.step()
            assert optimizer.skipped == float(poisoned)
            if poisoned:
                for param, kept, state in zip(params, *before, strict=True):
                    assert torch.equal(param, kept)
                    assert all(torch.equal(value, optimizer.state[param][key]) for key, value in state.items())
        norm = np.sqrt(sum(float((np.float64(g) ** 2).sum()) for g in grads))
        assert optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-6)
    for param, expected in zip(params, oracle(weights, steps, 0.01, 0.1, clip), strict=True):
        found = param.detach().double().numpy()
        assert np.linalg.norm(found - expected) < 2e-6 * np.linalg.norm(expected)


def test_gradients_are_left_alone_without_scale_and_clip():
    param = torch.ones(100, requires_grad=True)
    optimizer = AdamW([param], 0.1)
    param.grad = torch.linspace(0, 1, 100)
    kept = param.grad.clone()
    optimizer.step()
    assert torch.equal(param.grad, kept)


def test_under_grad_scaler():
    param = torch.ones(10, requires_grad=True)
    optimizer = AdamW([param], 0.1, max_grad_norm=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for k in range(4):
        before = param.detach().clone()
        scaler.scale(param.sum() * (float("nan") if k == 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, param) == (k == 2)
        assert optimizer.skipped == float(k == 2)
        assert scaler.get_scale() == 2.0 ** (9 if k >= 2 else 10)
    assert optimizer.state[param]["step"] == 3


def test_state_round_trip_and_deepcopy(tmp_path):
    param = torch.ones(10, requires_grad=True)
    optimizer = AdamW([param], 0.1, max_grad_norm=2.0)
    param.grad = torch.ones(10)
    optimizer.step()
    assert copy.deepcopy(optimizer).max_grad_norm == 2.0
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = AdamW([param], 0.5)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state[param]["step"] == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", -1.0), ("betas", (0.9, 1.0)), ("eps", 0.0), ("weight_decay", -1.0), ("max_grad_norm", 0.0)],
)
def test_bad_option_is_named(option, value):
    with pytest.raises(ValueError, match=f"{option} is .*allowed: "):
        AdamW([torch.ones(2, requires_grad=True)], **({"lr": 0.1} | {option: value}))


def test_bad_parameters_are_named():
    first = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="shares its memory"):
        AdamW([first, first.detach().requires_grad_()], 0.1)
    with pytest.raises(ValueError, match="dtype of a parameter"):
        AdamW([torch.ones(2, dtype=torch.bfloat16, requires_grad=True)], 0.1)
