"""NVLAMB's kernels on fixed tensors, beside its seven equations in float64 numpy. Part of ``prove_numbers.py``."""

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

KERNELS = ("reference", "foreach", "fused")
SHAPES = ((3,), (1,), (1025,), (64, 33), (7, 5), (9,), (90, 100))
ZERO_WEIGHTS, ZERO_GRADIENT = 5, 4  # a layer of zeros, and a layer whose gradient is always zero
DECAYED, LR, DECAY, BETAS, EPS, UPDATES = (0, 2, 3, 4, 6), 0.01, 0.01, (0.9, 0.999), 1e-6, 50
Numbers = dict[str, Any]


def updated_by_equations(weights: list[np.ndarray], gradients: list[list[np.ndarray]]) -> list[np.ndarray]:
    """NVLAMB's seven equations in float64."""
    w = [value.astype(np.float64) for value in weights]
    m, v = ([np.zeros_like(value) for value in w] for _ in range(2))
    for t, step in enumerate(gradients, 1):
        norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in step))
        for i, gradient in enumerate(step):
            g = gradient.astype(np.float64) / norm
            m[i] = BETAS[0] * m[i] + (1 - BETAS[0]) * g
            v[i] = BETAS[1] * v[i] + (1 - BETAS[1]) * g * g
            root = np.sqrt(v[i] / (1 - BETAS[1] ** t))
            u = m[i] / (1 - BETAS[0] ** t) / (root + EPS) + (DECAY if i in DECAYED else 0.0) * w[i]
            w_norm, u_norm = np.linalg.norm(w[i]), np.linalg.norm(u)
            ratio = w_norm / u_norm if w_norm > 0 and u_norm > 0 else 1.0
            w[i] = w[i] - LR * ratio * u
    return w


def measure_nvlamb(root: Path) -> Numbers:
    """Each kernel's weights after 50 updates: their hash, and the largest error of a layer, relative to its norm.

    ``root``: the repository whose NVLAMB is measured, whichever is installed.
    """
    import torch

    sys.path.insert(0, str(root))
    from bert_pretrain.optim import NVLamb

    torch.set_num_threads(1)
    draw = np.random.RandomState(11)
    weights = [(0.5 * draw.standard_normal(shape)).astype(np.float32) for shape in SHAPES]
    gradients = [[(0.3 + draw.standard_normal(shape)).astype(np.float32) for shape in SHAPES] for _ in range(UPDATES)]
    weights[ZERO_WEIGHTS][:] = 0
    for step in gradients:
        step[ZERO_GRADIENT][:] = 0
    expected, found = updated_by_equations(weights, gradients), {}
    for kernel in KERNELS:
        params = [torch.tensor(value).requires_grad_() for value in weights]
        groups = [
            {"params": [p for i, p in enumerate(params) if (i in DECAYED) == decays], "weight_decay": DECAY * decays}
            for decays in (True, False)
        ]
        optimizer = NVLamb(groups, LR, BETAS, EPS, kernel=kernel)
        for step in gradients:
            for param, gradient in zip(params, step, strict=True):
                param.grad = torch.tensor(gradient)
            optimizer.step()
        results = [param.detach().numpy() for param in params]
        errors = [
            np.linalg.norm(result - right) / max(np.linalg.norm(right), np.linalg.norm(start))
            for result, right, start in zip(results, expected, weights, strict=True)
        ]
        digest = hashlib.sha256(b"".join(result.tobytes() for result in results)).hexdigest()
        found[kernel] = {"weights_sha256": digest, "largest_error": float(max(errors))}
    return found
