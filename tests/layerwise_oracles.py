"""Muon, AdamH and Schedule-Free AdamW in float64 numpy, from the published equations.

Layers as in ``oracles.Oracle``; no code of the product.
"""

import numpy as np

from tests.oracles import clipped, norm_of


def orthogonalised(x):
    """Jordan et al. 2024: five quintic Newton-Schulz steps, after dividing by the Frobenius norm."""
    norm = np.linalg.norm(x)
    x = x / norm if norm > 0 else x
    for _ in range(5):
        x = 3.4445 * x - 4.775 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    return x


def on_sphere(w, u, lr, radius):
    """Wen et al. 2026: R N(w - lr R N(u))."""
    moved = w - lr * radius * u / np.linalg.norm(u) if np.linalg.norm(u) > 0 else w
    return radius * moved / np.linalg.norm(moved)


class _Layers:
    def __init__(self, layers, max_grad_norm=None):
        self.w = [np.asarray(w, dtype=np.float64).copy() for w, _, _ in layers]
        self.lr, self.decay, self.clip = [x[1] for x in layers], [x[2] for x in layers], max_grad_norm
        self.radius = [np.linalg.norm(w) for w in self.w]
        self.m, self.v = [np.zeros_like(w) for w in self.w], [np.zeros_like(w) for w in self.w]
        self.t = 0

    def step(self, grads):
        if not np.isfinite(norm_of(grads)):
            return
        self.t += 1
        for i, g in enumerate(clipped(grads, self.clip)):
            self.update(i, g)


class MuonOracle(_Layers):
    def __init__(self, layers, scale, mu=0.95, **others):
        super().__init__(layers, **others)
        self.scale, self.mu = scale, mu

    def update(self, i, g):
        self.m[i] = self.mu * self.m[i] + (1 - self.mu) * g
        o = orthogonalised(self.mu * self.m[i] + (1 - self.mu) * g)
        if self.scale == "hyperball":
            self.w[i] = on_sphere(self.w[i], o, self.lr[i], self.radius[i])
            return
        rows, columns = g.shape
        k = max(1, rows / columns) ** 0.5 if self.scale == "original" else 0.2 * max(rows, columns) ** 0.5
        self.w[i] = (1 - self.lr[i] * self.decay[i]) * self.w[i] - self.lr[i] * k * o


class AdamHOracle(_Layers):
    def update(self, i, g, b1=0.9, b2=0.95):
        self.m[i] = b1 * self.m[i] + (1 - b1) * g
        self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
        u = self.m[i] / (1 - b1**self.t) / (np.sqrt(self.v[i] / (1 - b2**self.t)) + 1e-8)
        self.w[i] = on_sphere(self.w[i], u, self.lr[i], self.radius[i])


class ScheduleFreeOracle(_Layers):
    """``w`` is the trained y, ``x`` the average."""

    def __init__(self, layers, **others):
        super().__init__(layers, **others)
        self.x, self.z = [w.copy() for w in self.w], [w.copy() for w in self.w]
        self.squares = [0.0] * len(self.w)

    def update(self, i, g, b1=0.9, b2=0.999):
        lr = self.lr[i]
        self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
        self.z[i] = self.z[i] - lr * g / (np.sqrt(self.v[i] / (1 - b2**self.t)) + 1e-8) - lr * self.decay[i] * self.w[i]
        self.squares[i] += lr**2
        c = lr**2 / self.squares[i]
        self.x[i] = (1 - c) * self.x[i] + c * self.z[i]
        self.w[i] = (1 - b1) * self.z[i] + b1 * self.x[i]
