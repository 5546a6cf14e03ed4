"""The optimizers in float64 numpy, written from the published equations, without any code of the product.

And a problem to run them on: two groups of layers of odd shapes, one of them zero, one with zero gradients.
"""

import copy
import functools

import numpy as np
import torch

from bert_pretrain.optim import NVLamb

PRESETS = {
    "nvlamb": {"pre_normalization": "unit"},
    "nvidia_code": {"pre_normalization": "clip", "max_grad_norm": 1.0, "trust_ratio": "decayed"},
    "lamb": {"pre_normalization": "none"},
    "lamb_appendix": {"pre_normalization": "none", "bias_correction": False},
    "lamb_phi": {"pre_normalization": "none", "phi_min": 0.5, "phi_max": 2.0},
    "lamb_ratio": {"pre_normalization": "none", "ratio_min": 0.45, "ratio_max": 50.0},
    "bounded_biases": {"phi_min": 1.0, "ratio_min": 0.05, "ratio_max": 0.2, "bounded_layers": "no_decay"},
}
# float32: relative error of the weights of a layer after 100 updates, and of the sum of its updates
WEIGHT_TOLERANCE, CHANGE_TOLERANCE = 1e-6, 5e-5


class Oracle:
    """Equations (1) to (7) of the article, in float64, over layers of (weights, lr, decay)."""

    def __init__(self, layers, *, b1=0.9, b2=0.999, eps=1e-6, **options):
        self.w = [np.asarray(w, dtype=np.float64).copy() for w, _, _ in layers]
        self.lr, self.decay = [x[1] for x in layers], [x[2] for x in layers]
        self.m, self.v = [np.zeros_like(w) for w in self.w], [np.zeros_like(w) for w in self.w]
        self.t = [0] * len(self.w)
        self.norms = [(0.0, 0.0)] * len(self.w)  # ||w|| before the last update, and ||u||
        self.b1, self.b2, self.eps, self.o = b1, b2, eps, options

    def step(self, grads):
        total = np.sqrt(sum(float((np.float64(g) ** 2).sum()) for g in grads if g is not None))
        if not np.isfinite(total):
            return
        how = self.o.get("pre_normalization", "unit")
        if how == "unit":
            s = 1 / total if total > 0 else 1.0
        elif how == "clip":
            c = self.o["max_grad_norm"]
            s = c / total if total > c else 1.0
        else:
            s = 1.0
        for i, g in enumerate(grads):
            if g is None:
                continue
            g = np.float64(g) * s
            self.t[i] += 1
            self.m[i] = self.b1 * self.m[i] + (1 - self.b1) * g
            self.v[i] = self.b2 * self.v[i] + (1 - self.b2) * g**2
            corrected = self.o.get("bias_correction", True)
            m = self.m[i] / (1 - self.b1 ** self.t[i]) if corrected else self.m[i]
            v = self.v[i] / (1 - self.b2 ** self.t[i]) if corrected else self.v[i]
            u = m / (np.sqrt(v) + self.eps) + self.decay[i] * self.w[i]
            wn, un = np.linalg.norm(self.w[i]), np.linalg.norm(u)
            self.norms[i] = (wn, un)
            r = 1.0
            if wn > 0 and un > 0 and (self.o.get("trust_ratio", "all") == "all" or self.decay[i] > 0):
                bounds = self.o if self.o.get("bounded_layers", "all") == "all" or self.decay[i] == 0 else {}
                r = min(max(wn, bounds.get("phi_min", 0.0)), bounds.get("phi_max", np.inf)) / un
                r = min(max(r, bounds.get("ratio_min", 0.0)), bounds.get("ratio_max", np.inf))
            self.w[i] = self.w[i] - self.lr[i] * r * u


class AdamOracle:
    """Kingma and Ba, algorithm 1; if ``decoupled``, Loshchilov and Hutter, algorithm 2. Layers as in ``Oracle``."""

    def __init__(self, layers, *, b1=0.9, b2=0.999, eps=1e-8, decoupled=False, max_grad_norm=None):
        self.w = [np.asarray(w, dtype=np.float64).copy() for w, _, _ in layers]
        self.lr, self.decay = [x[1] for x in layers], [x[2] for x in layers]
        self.m, self.v = [np.zeros_like(w) for w in self.w], [np.zeros_like(w) for w in self.w]
        self.t = 0
        self.b1, self.b2, self.eps, self.decoupled, self.clip = b1, b2, eps, decoupled, max_grad_norm

    def step(self, grads):
        if not np.isfinite(norm_of(grads)):
            return
        self.t += 1
        for i, g in enumerate(clipped(grads, self.clip)):
            if self.decoupled:
                self.w[i] = (1 - self.lr[i] * self.decay[i]) * self.w[i]
            else:
                g = g + self.decay[i] * self.w[i]
            self.m[i] = self.b1 * self.m[i] + (1 - self.b1) * g
            self.v[i] = self.b2 * self.v[i] + (1 - self.b2) * g**2
            root = np.sqrt(self.v[i] / (1 - self.b2**self.t))
            self.w[i] = self.w[i] - self.lr[i] * (self.m[i] / (1 - self.b1**self.t)) / (root + self.eps)


class MomentumOracle:
    """SGD with momentum; with ``eta``, LARS (You et al. 2017, algorithm 1); with ``larc``, apex's LARC around SGD."""

    def __init__(self, layers, *, momentum=0.9, max_grad_norm=None, eta=None, eps=0.0, larc=False, only_decayed=False):
        self.w = [np.asarray(w, dtype=np.float64).copy() for w, _, _ in layers]
        self.lr, self.decay = [x[1] for x in layers], [x[2] for x in layers]
        self.b = [np.zeros_like(w) for w in self.w]
        self.momentum, self.clip, self.eta, self.eps = momentum, max_grad_norm, eta, eps
        self.larc, self.only_decayed = larc, only_decayed

    def step(self, grads):
        if not np.isfinite(norm_of(grads)):
            return
        for i, g in enumerate(clipped(grads, self.clip)):
            rate = 1.0
            w_norm, g_norm = np.linalg.norm(self.w[i]), np.linalg.norm(g)
            adapted = self.eta is not None and (self.decay[i] > 0 or not self.only_decayed)
            if adapted and w_norm > 0 and g_norm > 0:
                rate = self.eta * w_norm / (g_norm + self.decay[i] * w_norm + self.eps)
            g = g + self.decay[i] * self.w[i]
            if self.eta is None:
                self.b[i] = self.momentum * self.b[i] + g
                self.w[i] = self.w[i] - self.lr[i] * self.b[i]
            elif self.larc:
                self.b[i] = self.momentum * self.b[i] + min(rate / self.lr[i], 1.0) * g
                self.w[i] = self.w[i] - self.lr[i] * self.b[i]
            else:
                self.b[i] = self.momentum * self.b[i] + self.lr[i] * rate * g
                self.w[i] = self.w[i] - self.b[i]


def norm_of(grads):
    return np.sqrt(sum(float((np.float64(g) ** 2).sum()) for g in grads))


def clipped(grads, limit):
    """Divided by the norm of all if ``limit`` is ``unit``; else clipped to it; None: neither."""
    if limit == "unit":
        return [np.float64(g) / norm_of(grads) for g in grads]
    factor = 1.0 if limit is None else 1 / max(1.0, norm_of(grads) / limit)
    return [factor * np.float64(g) for g in grads]


SHAPES = [(3,), (1,), (1025,), (64, 33), (7, 5), (9,), (11, 4), (4097,), (90, 100)]
ZERO_WEIGHT, ZERO_GRAD = 5, 6


@functools.lru_cache(maxsize=100)
def gradients_of_step(dtype, k):
    rng = np.random.default_rng(1000 + k)
    grads = [(0.3 * np.cos(np.arange(np.prod(s))).reshape(s) + rng.standard_normal(s)).astype(dtype) for s in SHAPES]
    grads[ZERO_GRAD][:] = 0
    return grads


def problem(dtype=np.float32):
    """Weights, and a function that returns the gradients of step k. One layer is zero, one has zero gradients."""
    rng = np.random.default_rng(0)
    weights = [(0.5 * rng.standard_normal(shape)).astype(dtype) for shape in SHAPES]
    weights[ZERO_WEIGHT][:] = 0
    return weights, lambda k: list(gradients_of_step(dtype, k % 20))


GROUPS = [(0.01, 0.01, [0, 2, 3, 4, 6, 8]), (0.02, 0.0, [1, 5, 7])]  # lr, decay, layers: two groups, one undecayed


def build(weights, kernel="reference", dtype=torch.float32, groups=GROUPS, device="cpu", **options):
    params = [torch.tensor(w).to(device, dtype).requires_grad_() for w in weights]
    return params, NVLamb(listed(params, groups), 1.0, kernel=kernel, **options)


def listed(params, groups=GROUPS):
    return [{"params": [params[i] for i in which], "lr": lr, "weight_decay": d} for lr, d, which in groups]


def build_oracle(weights, groups=GROUPS, kind=Oracle, **options):
    lr = {i: rate for rate, _, which in groups for i in which}
    decay = {i: d for _, d, which in groups for i in which}
    return kind([(w, lr[i], decay[i]) for i, w in enumerate(weights)], **options)


def set_grads(params, grads):
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else torch.tensor(grad).to(param.device, param.dtype)


def relative(found, expected):
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected)
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)


def assert_close(params, oracle, start, weight_tolerance=WEIGHT_TOLERANCE, change_tolerance=CHANGE_TOLERANCE):
    """Compare with errors relative to the norm of the weights, or of the initial weights if that is larger.

    (Decay alone can leave almost nothing of a layer.)
    """
    for param, expected, w0 in zip(params, oracle.w, start, strict=True):
        found = param.detach().double().cpu().numpy()
        size = max(np.linalg.norm(expected), np.linalg.norm(w0))
        assert np.linalg.norm(found - expected) <= weight_tolerance * size
        assert relative(found - w0, expected - w0) < change_tolerance


def snapshot(params, optimizer):
    state = [value.clone() for param in params for value in optimizer.state[param].values()]
    return [param.detach().clone() for param in params] + state


def assert_same(first, second):
    """The same bits."""
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_continues_bitwise(params, optimizer, rebuild, give, path):
    """Three updates later, a saved and loaded state and a deepcopy have led to the same bits, at rates that change.

    ``rebuild``: weights and an optimizer for weights in numpy; ``give``: sets the gradients of an update.
    """
    torch.save(optimizer.state_dict(), path)
    with optimizer.evaluation_weights():  # a checkpoint has these
        saved = [p.detach().numpy().copy() for p in params]
    copies, resumed = rebuild(saved)
    resumed.load_state_dict(torch.load(path, weights_only=True))
    runs = ((params, optimizer), (copies, resumed), copy.deepcopy((params, optimizer)))
    for k in range(3, 6):
        for own, run in runs:
            for group in run.param_groups:
                group["lr"] = torch.tensor(0.01 * 0.9**k, dtype=torch.float64)
            give(own, k)
            run.step()
    assert_same(params, runs[1][0])
    assert_same(params, runs[2][0])
