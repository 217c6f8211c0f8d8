"""Norm, scale and clamp of lists of tensors in Triton: two kernels, partial sums and the rest.

One kernel, whose programs meet halfway, would need all of them to run at once. Triton promises
that nowhere, and its interpreter runs them one after the other: the first would wait for ever.

A table (int64) begins with the bits of two fp64 numbers, p and the limit: max_norm, or the bound of
clamp. Then it says of each tensor where it lies, how long it is, which chunk is its first, its
dtype, and how often it is listed. Program i has the chunks i, i + programs, …; a chunk is
summed in fp32 (fp64 tensors: fp64), chunks in fp64.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = tl.constexpr(4096)  # elements
HEADER, FIELDS = tl.constexpr(2), tl.constexpr(5)
MAX, ONE, TWO, POWER = 0, 1, 2, 3
_MAX, _ONE, _TWO, _POWER = (tl.constexpr(k) for k in (MAX, ONE, TWO, POWER))


@triton.jit
def entry_of(table, entries, chunk):
    """The last entry whose first chunk is not beyond this one."""
    low = tl.full([], 0, tl.int64)
    high = low + entries
    while high - low > 1:
        middle = (low + high) // 2
        here = tl.load(table + HEADER + middle * FIELDS + 2) <= chunk
        low = tl.where(here, middle, low)
        high = tl.where(here, high, middle)
    return table + HEADER + low * FIELDS


@triton.jit
def number(table, index: tl.constexpr):
    """p (0) or the limit (1); Python's floats would come as fp32."""
    return tl.load(table + index).to(tl.float64, bitcast=True)


@triton.jit
def locate(entry, chunk, bytes_each):
    """The address of a chunk, its elements' offsets, and which of them exist."""
    begin = (chunk - tl.load(entry + 2)) * CHUNK
    offsets = tl.arange(0, CHUNK)
    address = tl.load(entry) + begin * bytes_each
    return address, offsets, offsets < tl.load(entry + 1) - begin


@triton.jit
def load_as(entry, chunk, T: tl.constexpr, bytes_each: tl.constexpr):
    address, offsets, mask = locate(entry, chunk, bytes_each)
    return tl.load(address.to(tl.pointer_type(T)) + offsets, mask=mask, other=0.0)


@triton.jit
def nan_max(a, b):
    """The larger of two that are not negative, or NaN."""
    return tl.where((a != a) | (b <= a), a, b)


@triton.jit
def power_sum(size, p, KIND: tl.constexpr):
    """Σ size^p, or the largest."""
    if KIND == _MAX:
        return tl.reduce(size, 0, nan_max)
    elif KIND == _ONE:
        return tl.sum(size, 0)
    elif KIND == _TWO:
        return tl.sum(size * size, 0)
    else:
        wide = size.to(tl.float64)
        raised = tl.exp2(tl.log2(tl.where(wide > 0, wide, 1.0)) * p)
        # a NaN is not above 0, and stays
        return tl.sum(tl.where(wide > 0, raised, wide), 0)


@triton.jit
def reduce_chunk(x, p, KIND: tl.constexpr):
    """(sum, unit): Σ|x|^p = unit^p · sum; the unit is 1 but where powers leave fp64's range."""
    size = tl.abs(x)
    total = power_sum(size, p, KIND).to(tl.float64)
    unit = tl.full([], 1.0, tl.float64)
    if KIND != _MAX:
        lost = (total == 0.0) | (total - total != 0.0)
        if lost:
            wide = size.to(tl.float64)
            total = power_sum(wide, p, KIND).to(tl.float64)
            most = power_sum(wide, p, _MAX)
            still = (total == 0.0) | (total - total != 0.0)
            if still & (most > 0.0) & (most - most == 0.0):
                unit = most
                total = power_sum(wide / most, p, KIND).to(tl.float64)
    return total, unit


@triton.jit
def add(sum_a, unit_a, sum_b, unit_b, p, KIND: tl.constexpr):
    """Two partial sums as one."""
    if KIND == _MAX:
        return nan_max(sum_a, sum_b), unit_a
    else:
        unit_a = tl.where(sum_a == 0.0, unit_b, unit_a)
        unit_b = tl.where(sum_b == 0.0, unit_a, unit_b)
        unit = tl.maximum(unit_a, unit_b)
        a = sum_a * tl.exp2(tl.log2(unit_a / unit) * p)
        b = sum_b * tl.exp2(tl.log2(unit_b / unit) * p)
        total = a + b
        beyond = (total - total != 0.0) & (a - a == 0.0) & (b - b == 0.0)
        grown = unit * tl.exp2(64.0 / p)
        return (
            tl.where(beyond, a * 5.421010862427522e-20 + b * 5.421010862427522e-20, total),
            tl.where(beyond, grown, unit),
        )


@triton.jit
def partial_norms(table, entries, chunks, norms, KIND: tl.constexpr):
    """norms fp64 [programs]: of each program's chunks."""
    program = tl.program_id(0)
    p = number(table, 0)
    total = tl.full([], 0.0, tl.float64)
    unit = tl.full([], 1.0, tl.float64)
    for chunk in range(program, chunks, tl.num_programs(0)):
        entry = entry_of(table, entries, chunk)
        dtype = tl.load(entry + 3)
        part = tl.full([], 0.0, tl.float64)
        own = tl.full([], 1.0, tl.float64)
        if dtype == 0:
            part, own = reduce_chunk(load_as(entry, chunk, tl.float32, 4), p, KIND)
        elif dtype == 1:
            part, own = reduce_chunk(load_as(entry, chunk, tl.float64, 8), p, KIND)
        elif dtype == 2:
            x = load_as(entry, chunk, tl.bfloat16, 2).to(tl.float32)
            part, own = reduce_chunk(x, p, KIND)
        else:
            x = load_as(entry, chunk, tl.float16, 2).to(tl.float32)
            part, own = reduce_chunk(x, p, KIND)
        for _ in range(tl.load(entry + 4)):
            total, unit = add(total, unit, part, own, p, KIND)
    tl.store(norms + program, unit * root(total, p, KIND))


@triton.jit
def root(x, p, KIND: tl.constexpr):
    if KIND == _TWO:
        return tl.sqrt(x)
    elif KIND == _POWER:
        usable = (x > 0.0) & (x - x == 0.0)
        return tl.where(usable, tl.exp2(tl.log2(tl.where(usable, x, 1.0)) / p), x)
    else:
        return x


@triton.jit
def norm_of(norms, programs, p, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """The norm of everything; each program computes it from all partial norms, in one order."""
    offsets = tl.arange(0, BLOCK)
    each = tl.load(norms + offsets, mask=offsets < programs, other=0.0)
    most = tl.reduce(each, 0, nan_max)
    if KIND == _MAX:
        return most
    else:
        usable = (most > 0.0) & (most - most == 0.0)
        unit = tl.where(usable, most, 1.0)
        return unit * root(power_sum(each / unit, p, KIND), p, KIND)


@triton.jit
def scaled(x, factor, repeats):
    """Multiplied as often as it is listed, rounded to the dtype each time."""
    for _ in range(repeats):
        if x.dtype == tl.float64:
            x = x * factor
        else:
            x = (x.to(tl.float32) * factor.to(tl.float32)).to(x.dtype)
    return x


@triton.jit
def clamped(x, bound):
    """To [-bound, bound], the upper bound last; a NaN is kept."""
    if x.dtype == tl.float64:
        wide = x
        high = bound
    else:  # the interpreter compares bfloat16 as integers
        wide = x.to(tl.float32)
        high = bound.to(tl.float32).to(x.dtype).to(tl.float32)
    raised = tl.where(wide < -high, -high, wide)
    return tl.where(raised > high, high, raised).to(x.dtype)


@triton.jit
def change_chunk(entry, chunk, by, CLAMP: tl.constexpr, T: tl.constexpr, bytes_each: tl.constexpr):
    address, offsets, mask = locate(entry, chunk, bytes_each)
    pointers = address.to(tl.pointer_type(T)) + offsets
    x = tl.load(pointers, mask=mask, other=0.0)
    if CLAMP:
        x = clamped(x, by)
    else:
        x = scaled(x, by, tl.load(entry + 4))
    tl.store(pointers, x, mask=mask)


@triton.jit
def change_chunks(table, entries, chunks, by, CLAMP: tl.constexpr):
    """This program's chunks, the last first: L2 may still hold it."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    rounds = (chunks - program + programs - 1) // programs
    for back in range(rounds):
        chunk = program + (rounds - 1 - back) * programs
        entry = entry_of(table, entries, chunk)
        dtype = tl.load(entry + 3)
        if dtype == 0:
            change_chunk(entry, chunk, by, CLAMP, tl.float32, 4)
        elif dtype == 1:
            change_chunk(entry, chunk, by, CLAMP, tl.float64, 8)
        elif dtype == 2:
            change_chunk(entry, chunk, by, CLAMP, tl.bfloat16, 2)
        else:
            change_chunk(entry, chunk, by, CLAMP, tl.float16, 2)


@triton.jit
def scale_all(table, entries, chunks, norm):
    factor = number(table, 1) / (norm + 1e-6)
    factor = tl.where(factor > 1.0, 1.0, factor)
    if factor != 1.0:  # else nothing would change
        change_chunks(table, entries, chunks, factor, False)


@triton.jit
def norm_and_scale(
    table, entries, chunks, norms, programs, wide, shown,
    KIND: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """The norm into ``wide`` (fp64) and ``shown``; then, if ``SCALE``, every tensor."""
    norm = norm_of(norms, programs, number(table, 0), KIND, BLOCK)
    if tl.program_id(0) == 0:
        tl.store(wide, norm)
        tl.store(shown, norm.to(shown.dtype.element_ty))
    if SCALE:
        scale_all(table, entries, chunks, norm)


@triton.jit
def scale_by_norm(table, entries, chunks, norm):
    scale_all(table, entries, chunks, tl.load(norm))


@triton.jit
def clamp_all(table, entries, chunks):
    change_chunks(table, entries, chunks, number(table, 1), True)
