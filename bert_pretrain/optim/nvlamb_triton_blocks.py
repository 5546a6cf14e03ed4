"""Device functions of the Triton kernels in ``nvlamb_triton_kernels``: work on one block of one layer.

A layer is split into chunks and a chunk into blocks; one program works on one chunk. Squares are summed in float32 over
four neighbouring elements, which one thread holds, and in float64 above that, always in the same order. Equations are
numbered as in ``nvlamb``.

A thread loads four neighbouring elements of each array: 128 bits of float32, 64 bits of bf16 or fp16. With 128 bits of
bf16 the register layouts would differ, and every block would go through shared memory, with barriers.

Triton pitfalls:

- Alignment and contiguity hints work on pointers only, and only in the function that builds the pointers. Without
  them, accesses silently become 32 bits wide.
- The interpreter truncates float32 to bf16, so the rounding is done on integers.
- A Python float passed to a kernel becomes float32, so all numbers are passed in tables.
- Triton 3.6 cannot compile a call that leaves a string to its default.
"""

import triton
import triton.language as tl

from bert_pretrain.optim.nvlamb_triton_plan import GROUP_FIELDS, LAYER_FIELDS

# Columns of the tables, in the order of their fields.
GRAD, WEIGHT, AVG, AVG_SQ, STEP, COPY, SIZE, ALIGNED, GROUP, FIRST, COUNT, PLACE = (
    tl.constexpr(i) for i in range(len(LAYER_FIELDS))
)
LR_AT, LR, KEEP1, ADD1, KEEP2, ADD2, LOG1, LOG2 = (tl.constexpr(i) for i in range(8))
EPS, DECAY, ADAPTED, PHI_MIN, PHI_MAX, RATIO_MIN, RATIO_MAX, MAX_NORM = (
    tl.constexpr(i) for i in range(8, len(GROUP_FIELDS))
)
LAYER_COLUMNS, GROUP_COLUMNS = tl.constexpr(len(LAYER_FIELDS)), tl.constexpr(len(GROUP_FIELDS))


@triton.jit
def update_block(
    addresses, at, left, factor, betas, scalars, TOGETHER: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """(3) to (5). Returns the sums of w^2 and of u^2 and the largest v, each over four neighbouring elements."""
    grad, weight, avg, avg_sq = addresses
    keep1, add1, keep2, add2 = betas
    g = gradient_block(grad, at, left, TOGETHER, TYPE, BLOCK) * factor
    w = _load(weight, at, left, tl.float32, TOGETHER, BLOCK, "")
    m = keep1 * _load(avg, at, left, tl.float32, TOGETHER, BLOCK, "") + add1 * g
    v = keep2 * _load(avg_sq, at, left, tl.float32, TOGETHER, BLOCK, "") + add2 * (g * g)
    _store(avg, at, left, m, tl.float32, TOGETHER, BLOCK, "")
    _store(avg_sq, at, left, v, tl.float32, TOGETHER, BLOCK, "")
    u = _update(w, m, v, scalars)
    peak = tl.max(tl.reshape(v, [BLOCK // 4, 4]), 1)
    return sums_of_4(w * w, BLOCK), sums_of_4(u * u, BLOCK), peak


@triton.jit
def apply_block(
    addresses, at, left, scalars, step_size, TOGETHER: tl.constexpr, COPY_TYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """(7), and the low-precision copy of w. Nothing of it is needed again before the next step."""
    weight, avg, avg_sq, copy = addresses
    w = _load(weight, at, left, tl.float32, TOGETHER, BLOCK, "evict_first")
    m = _load(avg, at, left, tl.float32, TOGETHER, BLOCK, "evict_first")
    v = _load(avg_sq, at, left, tl.float32, TOGETHER, BLOCK, "evict_first")
    w = w - step_size * _update(w, m, v, scalars)
    _store(weight, at, left, w, tl.float32, TOGETHER, BLOCK, "evict_first")
    if COPY_TYPE != "none":
        _store(copy, at, left, _rounded(w, COPY_TYPE), tl.int16, TOGETHER, BLOCK, "")


@triton.jit
def chunk_of(layers, layer_of, chunk, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Return the chunk's row of ``layers``, its start in the layer, its size, and how many blocks are full and aligned.

    Start and size in elements.
    """
    row = layers + tl.load(layer_of + chunk) * LAYER_COLUMNS
    start = (chunk - tl.load(row + FIRST)) * CHUNK
    size = tl.minimum(tl.load(row + SIZE) - start, CHUNK).to(tl.int32)
    whole = (size // BLOCK) * tl.load(row + ALIGNED).to(tl.int32)
    return row, start, size, whole


@triton.jit
def gradient_block(address, at, left, TOGETHER: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Read a block of a gradient as float32. It is evicted first: the moments are needed again in this step."""
    if TYPE == "bfloat16":
        bits = _load(address, at, left, tl.int16, TOGETHER, BLOCK, "evict_first")
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    if TYPE == "float16":
        return _load(address, at, left, tl.float16, TOGETHER, BLOCK, "evict_first").to(tl.float32)
    return _load(address, at, left, tl.float32, TOGETHER, BLOCK, "evict_first")


@triton.jit
def _places(address, at, TYPE: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers to a block.

    ``TOGETHER``: how many neighbouring elements a thread accesses at once, in a block that starts at a multiple of 16
    bytes; 0 for a block that is cut off or not aligned.
    """
    places = (address.to(tl.pointer_type(TYPE)) + at) + tl.arange(0, BLOCK)
    if TOGETHER:
        places = tl.max_contiguous(tl.multiple_of(places, 16), TOGETHER)
    return places


@triton.jit
def _load(address, at, left, TYPE: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr, EVICTION: tl.constexpr):
    """Read a block; 0 beyond the ``left`` elements that are left of the layer."""
    places = _places(address, at, TYPE, TOGETHER, BLOCK)
    if TOGETHER:
        return tl.load(places, eviction_policy=EVICTION)
    return tl.load(places, mask=tl.arange(0, BLOCK) < left, other=0)


@triton.jit
def _store(
    address, at, left, value,
    TYPE: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    places = _places(address, at, TYPE, TOGETHER, BLOCK)
    if TOGETHER:
        tl.store(places, value, eviction_policy=EVICTION)
    else:
        tl.store(places, value, mask=tl.arange(0, BLOCK) < left)


@triton.jit
def _update(w, m, v, scalars):
    """(4) and (5)."""
    k, e, decay = scalars
    return k * (m / (tl.sqrt(v) + e)) + decay * w


@triton.jit
def _rounded(w, COPY_TYPE: tl.constexpr):
    """The bits of w as bf16 or fp16, int16, rounded to nearest even."""
    if COPY_TYPE == "float16":
        return w.to(tl.float16).to(tl.int16, bitcast=True)
    bits = w.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(w == w, rounded, 0x7FC0).to(tl.int16)


@triton.jit
def sums_of_4(x, BLOCK: tl.constexpr):
    """Sums of four neighbouring elements in float32, converted to float64: (BLOCK / 4,)."""
    return tl.sum(tl.reshape(x, [BLOCK // 4, 4]), 1).to(tl.float64)
