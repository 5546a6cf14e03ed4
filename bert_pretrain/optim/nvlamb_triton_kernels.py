"""The Triton kernels that ``nvlamb_triton`` launches for NVLAMB. Equations, k and e are those of ``nvlamb``.

There are no atomic additions and the order of every sum is fixed: the same input gives the same bits.

Tables, all on the device:

- ``layers`` int64 and ``groups`` float64: rows of ``LAYER_FIELDS`` and ``GROUP_FIELDS``, see ``nvlamb_triton_plan``
- ``layer_of`` int32: the layer of each chunk; ``total`` chunks in all, ``first`` the first of this launch
- ``partials`` float64: the sum of squares of each program of the norm kernel
- ``sums`` float64 (3, total): ||w||^2, ||u||^2 and the largest v of each chunk
- ``kept`` float64 (layers, 3): t, k and e of each layer
- ``report`` float64 (2 + 2 n_layers): ||G||, gradient factor, ||w|| and ||u|| of each layer
- ``flags`` uint8 (2): skipped, nonfinite
"""

import triton
import triton.language as tl

from bert_pretrain.optim.nvlamb_triton_blocks import (
    ADAPTED,
    ADD1,
    ADD2,
    AVG,
    AVG_SQ,
    COPY,
    COUNT,
    DECAY,
    EPS,
    FIRST,
    GRAD,
    GROUP,
    GROUP_COLUMNS,
    KEEP1,
    KEEP2,
    LOG1,
    LOG2,
    LR,
    LR_AT,
    MAX_NORM,
    PHI_MAX,
    PHI_MIN,
    PLACE,
    RATIO_MAX,
    RATIO_MIN,
    STEP,
    WEIGHT,
    apply_block,
    chunk_of,
    gradient_block,
    sums_of_4,
    update_block,
)

LANES = tl.constexpr(1024)
"""Partial sums that a program reads at once."""


@triton.jit(do_not_specialize=["first", "chunks", "slot", "n_layers"])
def norm_kernel(
    layers, layer_of, first, chunks, partials, slot, report, flags, n_layers,
    CLEAR: tl.constexpr, TYPE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the squares of the stored gradients of ``chunks`` chunks: one sum per program, written from ``slot`` on.

    With ``CLEAR``, program 0 also clears the report and the flags of the step.
    """
    program = tl.program_id(0)
    if CLEAR:  # noqa: SIM102 - resolved at compile time
        if program == 0:
            tl.store(flags + tl.arange(0, 2), tl.zeros([2], tl.uint8))
            for i in range(0, 2 * n_layers + 2, LANES):
                places = i + tl.arange(0, LANES)
                tl.store(report + places, tl.zeros([LANES], tl.float64), mask=places < 2 * n_layers + 2)
    total = tl.zeros([BLOCK // 4], tl.float64)
    for chunk in range(first + program, first + chunks, tl.num_programs(0)):
        row, start, size, whole = chunk_of(layers, layer_of, chunk, CHUNK, BLOCK)
        address = tl.load(row + GRAD)
        for i in range(whole):
            g = gradient_block(address, start + i * BLOCK, BLOCK, 8, TYPE, BLOCK)
            total += sums_of_4(g * g, BLOCK)
        for i in range(whole, tl.cdiv(size, BLOCK)):
            g = gradient_block(address, start + i * BLOCK, size - i * BLOCK, 0, TYPE, BLOCK)
            total += sums_of_4(g * g, BLOCK)
    tl.store(partials + slot + program, tl.sum(total, 0))


@triton.jit(do_not_specialize=["first", "total", "n_partials"])
def update_kernel(
    layers, groups, layer_of, first, total, partials, n_partials, extra, scale, found, report, flags, sums, kept,
    PRE: tl.constexpr, TYPE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Decide whether the step is skipped; if not, (3) to (5) for one chunk, and its sums.

    The program of a layer's first chunk keeps t, k and e for ``apply_kernel``.
    """
    factor, skipped = _decide(groups, partials, n_partials, extra, scale, found, PRE, report, flags, first == 0)
    if skipped == 0:
        chunk = first + tl.program_id(0)
        row, start, size, whole = chunk_of(layers, layer_of, chunk, CHUNK, BLOCK)
        group = groups + tl.load(row + GROUP) * GROUP_COLUMNS
        # k and e of (4), with b^t = exp(t log b)
        t = tl.load(tl.load(row + STEP).to(tl.pointer_type(tl.float32))).to(tl.float64) + 1.0
        root2 = tl.sqrt(1.0 - tl.exp(t * tl.load(group + LOG2)))
        k = root2 / (1.0 - tl.exp(t * tl.load(group + LOG1)))
        e = tl.load(group + EPS) * root2
        if chunk == tl.load(row + FIRST):
            at = kept + tl.load(layer_of + chunk) * 3
            tl.store(at, t)
            tl.store(at + 1, k)
            tl.store(at + 2, e)
        addresses = (tl.load(row + GRAD), tl.load(row + WEIGHT), tl.load(row + AVG), tl.load(row + AVG_SQ))
        betas = (_number(group + KEEP1), _number(group + ADD1), _number(group + KEEP2), _number(group + ADD2))
        scalars = (k.to(tl.float32), e.to(tl.float32), _number(group + DECAY))
        w_sum, u_sum = tl.zeros([BLOCK // 4], tl.float64), tl.zeros([BLOCK // 4], tl.float64)
        v_max = tl.zeros([BLOCK // 4], tl.float32)
        for i in range(whole):
            w2, u2, peak = update_block(addresses, start + i * BLOCK, BLOCK, factor, betas, scalars, 4, TYPE, BLOCK)
            w_sum, u_sum, v_max = w_sum + w2, u_sum + u2, tl.maximum(v_max, peak)
        for i in range(whole, tl.cdiv(size, BLOCK)):
            left = size - i * BLOCK
            w2, u2, peak = update_block(addresses, start + i * BLOCK, left, factor, betas, scalars, 0, TYPE, BLOCK)
            w_sum, u_sum, v_max = w_sum + w2, u_sum + u2, tl.maximum(v_max, peak)
        tl.store(sums + chunk, tl.sum(w_sum, 0))
        tl.store(sums + total + chunk, tl.sum(u_sum, 0))
        tl.store(sums + 2 * total + chunk, tl.max(v_max, 0).to(tl.float64))


@triton.jit(do_not_specialize=["first", "total", "n_layers"])
def apply_kernel(
    layers, groups, layer_of, first, total, report, flags, sums, kept, n_layers,
    COPY_TYPE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Unless the step is skipped: (6), which every program of a layer computes alike, and (7) for one chunk.

    Blocks are taken last to first: what the update kernel touched last is most likely still in the cache.
    """
    if tl.load(flags) == 0:
        chunk = first + tl.program_id(0)
        layer = tl.load(layer_of + chunk)
        row, start, size, whole = chunk_of(layers, layer_of, chunk, CHUNK, BLOCK)
        group = groups + tl.load(row + GROUP) * GROUP_COLUMNS
        leader = chunk == tl.load(row + FIRST)
        rate = _layer_step_size(row, group, kept + layer * 3, total, sums, report, flags, n_layers, leader)
        step_size = rate.to(tl.float32)
        scalars = (_number(kept + layer * 3 + 1), _number(kept + layer * 3 + 2), _number(group + DECAY))
        addresses = (tl.load(row + WEIGHT), tl.load(row + AVG), tl.load(row + AVG_SQ), tl.load(row + COPY))
        blocks = tl.cdiv(size, BLOCK)
        for i in range(blocks - whole):
            j = blocks - 1 - i
            apply_block(addresses, start + j * BLOCK, size - j * BLOCK, scalars, step_size, 0, COPY_TYPE, BLOCK)
        for i in range(whole):
            apply_block(addresses, start + (whole - 1 - i) * BLOCK, BLOCK, scalars, step_size, 4, COPY_TYPE, BLOCK)


@triton.jit
def _decide(groups, partials, n_partials, extra, scale, found, PRE: tl.constexpr, report, flags, is_first):
    """(2). Returns the factor of the stored gradients, float32, and whether the step is skipped.

    ``extra``: sum of squares of gradients that no kernel here reads. All programs compute the same numbers.
    """
    lanes = tl.arange(0, LANES)
    total = tl.zeros([LANES], tl.float64)
    for i in range(0, n_partials, LANES):
        total += tl.load(partials + i + lanes, mask=i + lanes < n_partials, other=0.0)
    loss_scale = tl.load(scale).to(tl.float64)
    norm = tl.sqrt(tl.sum(total, 0) + tl.load(extra)) / loss_scale
    # x - x is 0 for finite x only.
    skipped = ((norm - norm != 0.0) | (tl.load(found) != 0)).to(tl.int32)
    divisor = norm * 0.0 + 1.0
    if PRE == "unit":
        divisor = tl.where(norm == 0.0, 1.0, norm)
    if PRE == "clip":
        ratio = norm / tl.load(groups + MAX_NORM)
        divisor = tl.where(ratio < 1.0, 1.0, ratio)
    factor = 1.0 / (divisor * loss_scale)
    if is_first and tl.program_id(0) == 0:
        tl.store(report, norm)
        tl.store(report + 1, factor)
        tl.store(flags, skipped.to(tl.uint8))
    return factor.to(tl.float32), skipped


@triton.jit
def _layer_step_size(row, group, kept, total, sums, report, flags, n_layers, leader):
    """Return lr r in float64, with r from (6) and the sums of all chunks of the layer.

    The leader also writes the norms to the report, stores t and flags norms and moments that are not finite.
    """
    first, count = tl.load(row + FIRST), tl.load(row + COUNT)
    lanes = tl.arange(0, LANES)
    w_sum, u_sum = tl.zeros([LANES], tl.float64), tl.zeros([LANES], tl.float64)
    v_max = tl.zeros([LANES], tl.float64)
    for i in range(0, count, LANES):
        at, inside = sums + first + i + lanes, i + lanes < count
        w_sum += tl.load(at, mask=inside, other=0.0)
        u_sum += tl.load(at + total, mask=inside, other=0.0)
        v_max = tl.maximum(v_max, tl.load(at + 2 * total, mask=inside, other=0.0))
    w_norm, u_norm, peak = tl.sqrt(tl.sum(w_sum, 0)), tl.sqrt(tl.sum(u_sum, 0)), tl.max(v_max, 0)
    low, high = tl.load(group + PHI_MIN), tl.load(group + PHI_MAX)
    # Comparisons with NaN are false: a NaN norm stays NaN.
    phi = tl.where(w_norm < low, low, tl.where(w_norm > high, high, w_norm))
    plain = (w_norm == 0.0) | (u_norm == 0.0) | (tl.load(group + ADAPTED) == 0.0)
    ratio = phi / tl.where(plain, 1.0, u_norm)
    low, high = tl.load(group + RATIO_MIN), tl.load(group + RATIO_MAX)
    ratio = tl.where(plain, 1.0, tl.where(ratio < low, low, tl.where(ratio > high, high, ratio)))
    rate_at = tl.load((group + LR_AT).to(tl.pointer_type(tl.int64)))
    rate = tl.load(group + LR)
    if rate_at != 0:
        rate = tl.load(rate_at.to(tl.pointer_type(tl.float64)))
    if leader:
        place = tl.load(row + PLACE)
        tl.store(report + 2 + place, w_norm)
        tl.store(report + 2 + n_layers + place, u_norm)
        tl.store(tl.load(row + STEP).to(tl.pointer_type(tl.float32)), tl.load(kept).to(tl.float32))
        health = w_norm + u_norm + peak
        if health - health != 0.0:
            tl.store(flags + 1, tl.full([], 1, tl.uint8))
    return rate * ratio


@triton.jit
def _number(place):
    return tl.load(place).to(tl.float32)
