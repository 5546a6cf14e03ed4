"""The Triton kernels that ``nvlamb_triton`` launches for NVLAMB. Equations as numbered in ``nvlamb``.

No value is added up by atomic operations, and the order of every sum is fixed: the same input gives the same bits.

Tables, all on the device:

- ``layers`` int64 and ``groups`` float64: rows of ``LAYER_FIELDS`` and ``GROUP_FIELDS``, see ``nvlamb_triton_plan``
- ``layer_of`` int32: the layer of each chunk; ``total`` chunks in all, ``first`` the first of this launch
- ``partials`` float64: of each program of the norm, the sum of its squares
- ``sums`` float64 (3, total): of each chunk ||w||^2, ||u||^2 and the largest v
- ``kept`` float64 (layers, 4): t, k, e and step size of each layer
- ``report`` float64 (2 + 2 n_layers): ||G||, gradient factor, ||w|| and ||u|| of each layer
- ``flags`` uint8 (2): skipped, nonfinite
- ``arrivals`` int32 (2 n_layers), persistent form: how many chunks of a layer are updated; whether it may be applied
"""

import triton
import triton.language as tl

from bert_pretrain.optim.nvlamb_triton_blocks import (
    ADAPTED,
    COUNT,
    FIRST,
    GRAD,
    GROUP,
    GROUP_COLUMNS,
    LAYER_COLUMNS,
    LR,
    LR_AT,
    MAX_NORM,
    PHI_MAX,
    PHI_MIN,
    PLACE,
    STEP,
    apply_chunk,
    chunk_of,
    gradient_block,
    sums_of_4,
    update_chunk,
)

LANES = tl.constexpr(1024)
"""Partial sums that are read at a time."""


@triton.jit(do_not_specialize=["first", "chunks", "slot", "n_layers"])
def norm_kernel(
    layers, layer_of, first, chunks, partials, slot, report, flags, arrivals, n_layers,
    CLEAR: tl.constexpr, TYPE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum of squares of the gradients, as stored, of ``chunks`` chunks: one sum a program, from ``slot`` on.

    With ``CLEAR``, the first program empties what the step reports and the arrivals.
    """
    program = tl.program_id(0)
    if CLEAR:
        _clear(program == 0, report, flags, arrivals, n_layers)
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
    """Decide; unless skipped advance the moments of one chunk, (2) to (4), and leave its ||w||^2 and ||u||^2."""
    factor, skipped = _decide(groups, partials, n_partials, extra, scale, found, PRE, report, flags, first == 0)
    if skipped == 0:
        chunk = first + tl.program_id(0)
        update_chunk(layers, groups, layer_of, chunk, total, factor, sums, kept, TYPE, CHUNK, BLOCK)


@triton.jit(do_not_specialize=["first", "total", "n_layers"])
def apply_kernel(
    layers, groups, layer_of, first, total, report, flags, sums, kept, n_layers,
    COPY_TYPE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Unless skipped: (6) for the layer, by every program of it, and (7) for one chunk. The layer's first reports."""
    if tl.load(flags) == 0:
        chunk = first + tl.program_id(0)
        layer = tl.load(layer_of + chunk)
        leader = chunk == tl.load(layers + layer * LAYER_COLUMNS + FIRST)
        step_size = _layer_step_size(layers, groups, layer, total, sums, kept, report, flags, n_layers, leader)
        apply_chunk(layers, groups, layer_of, chunk, kept, step_size, COPY_TYPE, CHUNK, BLOCK)


@triton.jit(do_not_specialize=["rounds", "first", "total", "n_partials", "n_layers"])
def persistent_kernel(
    items, rounds, layers, groups, layer_of, first, total, partials, n_partials, extra, scale, found, report, flags,
    sums, kept, arrivals, n_layers,
    PRE: tl.constexpr, TYPE: tl.constexpr, COPY_TYPE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update and apply in one launch, by programs that are all resident at once.

    ``items``, int32 (programs, rounds): what a program does, in order. 2 chunk: update it. 2 chunk + 1: wait until
    all chunks of its layer are updated, then apply it; always a chunk that the same program has updated. -1: end.
    """
    factor, skipped = _decide(groups, partials, n_partials, extra, scale, found, PRE, report, flags, first == 0)
    if skipped == 0:
        for i in range(rounds):
            item = tl.load(items + tl.program_id(0) * rounds + i)
            if item >= 0:
                chunk = item // 2
                layer = tl.load(layer_of + chunk)
                if item % 2 == 0:
                    update_chunk(layers, groups, layer_of, chunk, total, factor, sums, kept, TYPE, CHUNK, BLOCK)
                    _arrive(layers, groups, layer, total, sums, kept, report, flags, arrivals, n_layers)
                else:
                    while tl.atomic_add(arrivals + n_layers + layer, 0, sem="acquire", scope="gpu") == 0:
                        pass
                    step_size = tl.load(kept + layer * 4 + 3, cache_modifier=".cg")
                    apply_chunk(layers, groups, layer_of, chunk, kept, step_size, COPY_TYPE, CHUNK, BLOCK)


@triton.jit
def _clear(here, report, flags, arrivals, n_layers):
    lanes = tl.arange(0, LANES)
    if here:
        tl.store(flags + tl.arange(0, 2), tl.zeros([2], tl.uint8))
        for i in range(0, 2 * n_layers + 2, LANES):
            tl.store(report + i + lanes, tl.zeros([LANES], tl.float64), mask=i + lanes < 2 * n_layers + 2)
            tl.store(arrivals + i + lanes, tl.zeros([LANES], tl.int32), mask=i + lanes < 2 * n_layers)


@triton.jit
def _arrive(layers, groups, layer, total, sums, kept, report, flags, arrivals, n_layers):
    """Count a chunk as updated. Whoever comes last of a layer takes its norms and lets the others go on."""
    tl.debug_barrier()  # the release below speaks for all threads of the program
    before = tl.atomic_add(arrivals + layer, 1, sem="acq_rel", scope="gpu")
    if before == tl.load(layers + layer * LAYER_COLUMNS + COUNT) - 1:
        step_size = _layer_step_size(layers, groups, layer, total, sums, kept, report, flags, n_layers, True)
        tl.store(kept + layer * 4 + 3, step_size)
        tl.debug_barrier()
        tl.atomic_xchg(arrivals + n_layers + layer, 1, sem="release", scope="gpu")


@triton.jit
def _decide(groups, partials, n_partials, extra, scale, found, PRE: tl.constexpr, report, flags, is_first):
    """Return the factor of the stored gradients, float32, and whether the step is skipped; (2).

    ``extra``: sum of squares of gradients that no kernel here reads. All programs come to the same numbers.
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
def _layer_step_size(layers, groups, layer, total, sums, kept, report, flags, n_layers, leader):
    """Return lr r, float64, r from (6) and the sums of all chunks of the layer; the leader reports and counts t."""
    row = layers + layer * LAYER_COLUMNS
    group = groups + tl.load(row + GROUP) * GROUP_COLUMNS
    first, count = tl.load(row + FIRST), tl.load(row + COUNT)
    lanes = tl.arange(0, LANES)
    w_sum, u_sum = tl.zeros([LANES], tl.float64), tl.zeros([LANES], tl.float64)
    v_max = tl.zeros([LANES], tl.float64)
    for i in range(0, count, LANES):
        at, inside = sums + first + i + lanes, i + lanes < count
        w_sum += tl.load(at, mask=inside, other=0.0, cache_modifier=".cg")
        u_sum += tl.load(at + total, mask=inside, other=0.0, cache_modifier=".cg")
        v_max = tl.maximum(v_max, tl.load(at + 2 * total, mask=inside, other=0.0, cache_modifier=".cg"))
    w_norm, u_norm, peak = tl.sqrt(tl.sum(w_sum, 0)), tl.sqrt(tl.sum(u_sum, 0)), tl.max(v_max, 0)
    low, high = tl.load(group + PHI_MIN), tl.load(group + PHI_MAX)
    # Comparisons with NaN are false: a NaN norm stays NaN.
    phi = tl.where(w_norm < low, low, tl.where(w_norm > high, high, w_norm))
    plain = (w_norm == 0.0) | (u_norm == 0.0) | (tl.load(group + ADAPTED) == 0.0)
    ratio = tl.where(plain, 1.0, phi / tl.where(plain, 1.0, u_norm))
    rate_at = tl.load((group + LR_AT).to(tl.pointer_type(tl.int64)))
    rate = tl.load(group + LR)
    if rate_at != 0:
        rate = tl.load(rate_at.to(tl.pointer_type(tl.float64)))
    if leader:
        place = tl.load(row + PLACE)
        tl.store(report + 2 + place, w_norm)
        tl.store(report + 2 + n_layers + place, u_norm)
        t = tl.load(kept + layer * 4, cache_modifier=".cg")
        tl.store(tl.load(row + STEP).to(tl.pointer_type(tl.float32)), t.to(tl.float32))
        health = w_norm + u_norm + peak
        if health - health != 0.0:
            tl.store(flags + 1, tl.full([], 1, tl.uint8))
    return rate * ratio
