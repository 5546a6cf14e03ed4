"""The compiled loops of ``nvlamb_cpu``. They take addresses, so that one call can handle any number of layers.

Arguments of all of them:

- ``begin``, ``end``: a range of ``pieces``. One thread computes a range, and no two ranges touch the same memory.
- ``pieces`` (P, 5) int64: layer, first element, number of elements, and where the layer's pieces begin and end
- ``addresses`` (layers, 4) int64: of w, g, m, v, all float32
- ``numbers`` (layers, 12) float64: the columns below
- ``sums`` (P, 4) float64, written: of g^2, w^2, u^2, and of 0 v, which is NaN if v is infinite

Equations, k and e are those of ``nvlamb``. Arithmetic is float32. Norms are summed as in ``norms``: in float32 over at
most ``BLOCK`` elements and in float64 above that, in an order that depends neither on the threads nor on the other
layers.
"""

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from bert_pretrain.jit import cached_njit
from bert_pretrain.optim.norms import BLOCK

FACTOR, BETA1, BETA2, K, E, DECAY, LR, ADAPTED, PHI_MIN, PHI_MAX, RATIO_MIN, RATIO_MAX = range(12)
"""Columns of ``numbers``. FACTOR: of stored gradients, for (1) and (2). ADAPTED: 1 for a layer with a trust ratio."""

# Sums may be reordered and products fused, so that loops vectorise; NaN and infinity are still handled correctly.
_compiled = cached_njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@intrinsic
def _pointer(_context: Any, address: Any) -> Any:
    """Convert an address to a pointer to float32."""
    pointer = types.CPointer(types.float32)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address), generate


@_compiled
def _view(address: int, first: int, size: int) -> np.ndarray:
    """An array of ``size`` float32 elements, from element ``first`` of the tensor at ``address``."""
    return carray(_pointer(address + 4 * first), size)  # type: ignore[call-arg]


@_compiled
def measure(begin: int, end: int, pieces: np.ndarray, addresses: np.ndarray, sums: np.ndarray) -> None:
    """Sum g^2 of the pieces."""
    for p in range(begin, end):
        layer, first, size = pieces[p, 0], pieces[p, 1], pieces[p, 2]
        g = _view(addresses[layer, 1], first, size)
        total = 0.0
        for block in range(0, size, BLOCK):
            total += np.float64(_sum_of_squares(g[block : block + BLOCK]))
        sums[p, 0] = total


@_compiled
def _sum_of_squares(x: np.ndarray) -> np.float32:
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    return total


@_compiled
def advance(
    begin: int, end: int, pieces: np.ndarray, addresses: np.ndarray, numbers: np.ndarray, sums: np.ndarray
) -> None:
    """Equations (2) to (5): advance m and v of the pieces, and sum w^2 and u^2."""
    for p in range(begin, end):
        layer, first, size = pieces[p, 0], pieces[p, 1], pieces[p, 2]
        w, g = _view(addresses[layer, 0], first, size), _view(addresses[layer, 1], first, size)
        m, v = _view(addresses[layer, 2], first, size), _view(addresses[layer, 3], first, size)
        w_sum = u_sum = broken = 0.0
        for block in range(0, size, BLOCK):
            cut = slice(block, block + BLOCK)
            of_block = _advance_block(w[cut], g[cut], m[cut], v[cut], numbers[layer])
            w_sum += np.float64(of_block[0])
            u_sum += np.float64(of_block[1])
            broken += np.float64(of_block[2])
        sums[p, 1], sums[p, 2], sums[p, 3] = w_sum, u_sum, broken


@_compiled
def _advance_block(
    w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, numbers: np.ndarray
) -> tuple[np.float32, np.float32, np.float32]:
    factor, k, e = np.float32(numbers[FACTOR]), np.float32(numbers[K]), np.float32(numbers[E])
    keep1, add1 = np.float32(numbers[BETA1]), np.float32(1 - numbers[BETA1])
    keep2, add2 = np.float32(numbers[BETA2]), np.float32(1 - numbers[BETA2])
    decay, nothing = np.float32(numbers[DECAY]), np.float32(0)
    w_sum, u_sum, broken = nothing, nothing, nothing
    for i in range(w.size):
        g_i = g[i] * factor  # (1), (2)
        m_i = keep1 * m[i] + add1 * g_i  # (3)
        v_i = keep2 * v[i] + add2 * g_i * g_i
        m[i], v[i] = m_i, v_i
        u = k * m_i / (np.sqrt(v_i) + e) + decay * w[i]  # (4), (5)
        w_sum += w[i] * w[i]
        u_sum += u * u
        broken += v_i * nothing  # NaN if v is infinite, which u would hide (m / inf = 0)
    return w_sum, u_sum, broken


@_compiled
def descend(
    begin: int, end: int, pieces: np.ndarray, addresses: np.ndarray, numbers: np.ndarray, sums: np.ndarray
) -> None:
    """Equations (6) and (7) on the pieces, last to first: the last is most likely still in the cache."""
    for p in range(end - 1, begin - 1, -1):
        layer, first, size = pieces[p, 0], pieces[p, 1], pieces[p, 2]
        w, m, v = (
            _view(addresses[layer, 0], first, size),
            _view(addresses[layer, 2], first, size),
            _view(addresses[layer, 3], first, size),
        )
        of_layer = sums[pieces[p, 3] : pieces[p, 4]]
        ratio = _trust_ratio(np.sqrt(of_layer[:, 1].sum()), np.sqrt(of_layer[:, 2].sum()), numbers[layer])
        _descend_piece(w, m, v, np.float32(numbers[layer, LR] * ratio), numbers[layer])


@_compiled
def _trust_ratio(w_norm: float, u_norm: float, numbers: np.ndarray) -> float:
    """``TrustRatio.of`` for one layer."""
    if numbers[ADAPTED] == 0 or w_norm == 0 or u_norm == 0:
        return 1.0
    phi = w_norm
    if phi < numbers[PHI_MIN]:
        phi = numbers[PHI_MIN]
    if phi > numbers[PHI_MAX]:
        phi = numbers[PHI_MAX]
    ratio = phi / u_norm
    if ratio < numbers[RATIO_MIN]:
        ratio = numbers[RATIO_MIN]
    if ratio > numbers[RATIO_MAX]:
        ratio = numbers[RATIO_MAX]
    return ratio


@_compiled
def _descend_piece(w: np.ndarray, m: np.ndarray, v: np.ndarray, step_size: np.float32, numbers: np.ndarray) -> None:
    k, e, decay = np.float32(numbers[K]), np.float32(numbers[E]), np.float32(numbers[DECAY])
    for i in range(w.size):
        w[i] -= step_size * (k * m[i] / (np.sqrt(v[i]) + e) + decay * w[i])


@_compiled
def update(
    begin: int, end: int, pieces: np.ndarray, addresses: np.ndarray, numbers: np.ndarray, sums: np.ndarray
) -> None:
    """Both passes over whole layers, layer by layer, so that the second pass finds the layer in the cache."""
    while begin < end:
        end_of_layer = pieces[begin, 4]
        advance(begin, end_of_layer, pieces, addresses, numbers, sums)
        descend(begin, end_of_layer, pieces, addresses, numbers, sums)
        begin = end_of_layer
