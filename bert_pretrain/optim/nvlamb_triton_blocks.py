"""NVLAMB on the device, a chunk of a layer at a time: what the Triton kernels of ``nvlamb_triton_kernels`` consist of.

A layer is cut into chunks and a chunk into blocks; one program works on one chunk at a time. Sums of squares are
float32 over four neighbouring elements, which one thread holds, and float64 above that, always in the same order.
Equations as numbered in ``nvlamb``.

A thread takes four neighbours of every array: 128 bits of float32, and 64 of bf16 or fp16, because with 128 of these
the layouts differ and every block goes through shared memory, with barriers, before it meets the float32 ones.

Triton traps met here. The hint that a block of pointers is aligned and contiguous counts only in the function that
builds the block, and only on the pointers: elsewhere every access falls to 32 bits without a word. The interpreter
truncates float32 to bf16: the rounding is done in whole numbers. A float that is passed to a kernel becomes float32:
all numbers come in tables.
"""

import triton
import triton.language as tl

from bert_pretrain.optim.nvlamb_triton_plan import GROUP_FIELDS, LAYER_FIELDS

# Columns of the tables, in the order of their fields.
GRAD, WEIGHT, AVG, AVG_SQ, STEP, COPY, SIZE, ALIGNED, GROUP, FIRST, COUNT, PLACE = (
    tl.constexpr(i) for i in range(len(LAYER_FIELDS))
)
LR_AT, LR, KEEP1, ADD1, KEEP2, ADD2, LOG1, LOG2, EPS, DECAY, ADAPTED, PHI_MIN, PHI_MAX, MAX_NORM = (
    tl.constexpr(i) for i in range(len(GROUP_FIELDS))
)
LAYER_COLUMNS, GROUP_COLUMNS = tl.constexpr(len(LAYER_FIELDS)), tl.constexpr(len(GROUP_FIELDS))


@triton.jit
def update_chunk(
    layers, groups, layer_of, chunk, total, factor, sums, kept,
    TYPE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(3) to (5) for one chunk; its sums. The first chunk of a layer keeps t, k and e for the apply."""
    row, start, size, whole = chunk_of(layers, layer_of, chunk, CHUNK, BLOCK)
    group = groups + tl.load(row + GROUP) * GROUP_COLUMNS
    # (4): m'/(sqrt(v') + eps) = k m / (sqrt(v) + e) with k = sqrt(1-b2^t) / (1-b1^t), e = eps sqrt(1-b2^t)
    t = tl.load(tl.load(row + STEP).to(tl.pointer_type(tl.float32))).to(tl.float64) + 1.0
    root2 = tl.sqrt(1.0 - tl.exp(t * tl.load(group + LOG2)))
    k = root2 / (1.0 - tl.exp(t * tl.load(group + LOG1)))
    e = tl.load(group + EPS) * root2
    if chunk == tl.load(row + FIRST):
        at = kept + tl.load(layer_of + chunk) * 4
        tl.store(at, t)
        tl.store(at + 1, k)
        tl.store(at + 2, e)
    addresses = (tl.load(row + GRAD), tl.load(row + WEIGHT), tl.load(row + AVG), tl.load(row + AVG_SQ))
    moments = (_number(group + KEEP1), _number(group + ADD1), _number(group + KEEP2), _number(group + ADD2))
    update = (k.to(tl.float32), e.to(tl.float32), _number(group + DECAY))
    w_sum, u_sum = tl.zeros([BLOCK // 4], tl.float64), tl.zeros([BLOCK // 4], tl.float64)
    v_max = tl.zeros([BLOCK // 4], tl.float32)
    for i in range(whole):
        w2, u2, peak = _update_block(addresses, start + i * BLOCK, BLOCK, factor, moments, update, 4, TYPE, BLOCK)
        w_sum, u_sum, v_max = w_sum + w2, u_sum + u2, tl.maximum(v_max, peak)
    for i in range(whole, tl.cdiv(size, BLOCK)):
        left = size - i * BLOCK
        w2, u2, peak = _update_block(addresses, start + i * BLOCK, left, factor, moments, update, 0, TYPE, BLOCK)
        w_sum, u_sum, v_max = w_sum + w2, u_sum + u2, tl.maximum(v_max, peak)
    tl.store(sums + chunk, tl.sum(w_sum, 0))
    tl.store(sums + total + chunk, tl.sum(u_sum, 0))
    tl.store(sums + 2 * total + chunk, tl.max(v_max, 0).to(tl.float64))


@triton.jit
def _update_block(
    addresses, at, left, factor, moments, update, TOGETHER: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """Advance the moments of one block; return sums of w^2, of u^2 and the largest v, of four elements each."""
    grad, weight, avg, avg_sq = addresses
    keep1, add1, keep2, add2 = moments
    lanes = tl.arange(0, BLOCK)
    g = gradient_block(grad, at, left, TOGETHER, TYPE, BLOCK) * factor
    w_at = _places(weight, at, tl.float32, TOGETHER, BLOCK)
    m_at = _places(avg, at, tl.float32, TOGETHER, BLOCK)
    v_at = _places(avg_sq, at, tl.float32, TOGETHER, BLOCK)
    if TOGETHER:
        w, m, v = tl.load(w_at), tl.load(m_at), tl.load(v_at)
    else:
        w = tl.load(w_at, mask=lanes < left, other=0.0)
        m = tl.load(m_at, mask=lanes < left, other=0.0)
        v = tl.load(v_at, mask=lanes < left, other=0.0)
    m = keep1 * m + add1 * g
    v = keep2 * v + add2 * (g * g)
    if TOGETHER:
        tl.store(m_at, m)
        tl.store(v_at, v)
    else:
        tl.store(m_at, m, mask=lanes < left)
        tl.store(v_at, v, mask=lanes < left)
    u = _direction(w, m, v, update)
    peak = tl.max(tl.reshape(v, [BLOCK // 4, 4]), 1)
    return sums_of_4(w * w, BLOCK), sums_of_4(u * u, BLOCK), peak


@triton.jit
def apply_chunk(
    layers, groups, layer_of, chunk, kept, step_size,
    COPY_TYPE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(7) for one chunk, last block first: what the update touched last is most likely still in the cache."""
    row, start, size, whole = chunk_of(layers, layer_of, chunk, CHUNK, BLOCK)
    at = kept + tl.load(layer_of + chunk) * 4
    k = tl.load(at + 1, cache_modifier=".cg").to(tl.float32)
    e = tl.load(at + 2, cache_modifier=".cg").to(tl.float32)
    update = (k, e, _number(groups + tl.load(row + GROUP) * GROUP_COLUMNS + DECAY))
    addresses = (tl.load(row + WEIGHT), tl.load(row + AVG), tl.load(row + AVG_SQ), tl.load(row + COPY))
    step_size = step_size.to(tl.float32)
    blocks = tl.cdiv(size, BLOCK)
    for i in range(blocks - whole):
        j = blocks - 1 - i
        _apply_block(addresses, start + j * BLOCK, size - j * BLOCK, update, step_size, 0, COPY_TYPE, BLOCK)
    for i in range(whole):
        _apply_block(addresses, start + (whole - 1 - i) * BLOCK, BLOCK, update, step_size, 4, COPY_TYPE, BLOCK)


@triton.jit
def _apply_block(
    addresses, at, left, update, step_size, TOGETHER: tl.constexpr, COPY_TYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """w <- w - step_size u and the copy of w. Nothing read or written here is needed again before the next step."""
    weight, avg, avg_sq, copy = addresses
    lanes = tl.arange(0, BLOCK)
    w_at = _places(weight, at, tl.float32, TOGETHER, BLOCK)
    m_at = _places(avg, at, tl.float32, TOGETHER, BLOCK)
    v_at = _places(avg_sq, at, tl.float32, TOGETHER, BLOCK)
    if TOGETHER:
        w = tl.load(w_at, eviction_policy="evict_first")
        m = tl.load(m_at, eviction_policy="evict_first")
        v = tl.load(v_at, eviction_policy="evict_first")
    else:
        w = tl.load(w_at, mask=lanes < left, other=0.0)
        m = tl.load(m_at, mask=lanes < left, other=0.0)
        v = tl.load(v_at, mask=lanes < left, other=0.0)
    w = w - step_size * _direction(w, m, v, update)
    if TOGETHER:
        tl.store(w_at, w, eviction_policy="evict_first")
    else:
        tl.store(w_at, w, mask=lanes < left)
    if COPY_TYPE != "none":
        bits = _rounded(w, COPY_TYPE)
        copy_at = _places(copy, at, tl.int16, TOGETHER, BLOCK)
        if TOGETHER:
            tl.store(copy_at, bits)
        else:
            tl.store(copy_at, bits, mask=lanes < left)


@triton.jit
def chunk_of(layers, layer_of, chunk, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Return the row of the chunk's layer, where in the layer it starts, its elements, and its aligned full blocks."""
    row = layers + tl.load(layer_of + chunk) * LAYER_COLUMNS
    start = (chunk - tl.load(row + FIRST)) * CHUNK
    size = tl.minimum(tl.load(row + SIZE) - start, CHUNK).to(tl.int32)
    whole = (size // BLOCK) * tl.load(row + ALIGNED).to(tl.int32)
    return row, start, size, whole


@triton.jit
def _places(address, at, TYPE: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers to a block. ``TOGETHER`` neighbours, from a multiple of 16 bytes on, go to one thread; 0: no promise."""
    places = (address.to(tl.pointer_type(TYPE)) + at) + tl.arange(0, BLOCK)
    if TOGETHER:
        places = tl.max_contiguous(tl.multiple_of(places, 16), TOGETHER)
    return places


@triton.jit
def gradient_block(address, at, left, TOGETHER: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Read a block of a gradient, as float32. Not needed again: the moments are, before the step is over.

    ``TOGETHER``: 0 for a block that is cut off or not aligned, else how many elements a thread reads at once.
    """
    if TYPE == "float32":
        places = _places(address, at, tl.float32, TOGETHER, BLOCK)
    elif TYPE == "float16":
        places = _places(address, at, tl.float16, TOGETHER, BLOCK)
    else:
        places = _places(address, at, tl.int16, TOGETHER, BLOCK)
    if TOGETHER:
        g = tl.load(places, eviction_policy="evict_first")
    else:
        g = tl.load(places, mask=tl.arange(0, BLOCK) < left, other=0)
    if TYPE == "bfloat16":
        return (g.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return g.to(tl.float32)


@triton.jit
def _direction(w, m, v, update):
    """(5)."""
    k, e, decay = update
    return k * (m / (tl.sqrt(v) + e)) + decay * w


@triton.jit
def _rounded(w, COPY_TYPE: tl.constexpr):
    """Bits of w as bf16 or fp16, int16, rounded to the nearest, ties to even."""
    if COPY_TYPE == "float16":
        return w.to(tl.float16).to(tl.int16, bitcast=True)
    bits = w.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(w == w, rounded, 0x7FC0).to(tl.int16)


@triton.jit
def sums_of_4(x, BLOCK: tl.constexpr):
    """Sums of four neighbours in float32, as float64, shape (BLOCK / 4,)."""
    return tl.sum(tl.reshape(x, [BLOCK // 4, 4]), 1).to(tl.float64)


@triton.jit
def _number(place):
    return tl.load(place).to(tl.float32)
