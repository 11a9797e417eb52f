"""Codes inside a Triton kernel: the steps of `codes.py`, one for one, and packed bytes.

A value that an element has is a few digits times a power of two: every step here is exact.
"""

import triton
import triton.language as tl

from mpq.kernels.triton_rounding import bits_of, clamp, float_of


@triton.jit
def codes_of(values, facts: tl.constexpr):
    """The stored codes, int32, of values of an element without a zero point."""
    if facts.kind == "integer":
        return values.to(tl.int32) & ((1 << facts.width) - 1)
    elif facts.kind == "table":
        return _table_codes(values, facts.rounding)
    elif facts.kind == "bfloat16":
        return (values.to(tl.int32, bitcast=True) >> 16) & 0xFFFF
    else:
        sizes = tl.abs(values)
        if facts.kind == "sign-magnitude":
            codes = sizes.to(tl.int32)
        elif facts.kind == "log":
            fields = bits_of(sizes, facts.rounding.wide) >> facts.rounding.mantissa
            codes = tl.where(sizes == 0.0, 0, fields - facts.rounding.first_code).to(tl.int32)
        else:
            codes = _float_codes(sizes, facts)
        is_negative = (bits_of(values, facts.rounding.wide) < 0).to(tl.int32)
        return codes | (is_negative << (facts.width - 1))


@triton.jit
def _table_codes(values, facts: tl.constexpr):
    codes = tl.zeros(values.shape, tl.int32)
    entries: tl.constexpr = len(facts.table)
    for index in tl.static_range(entries):
        codes += (values >= facts.table[index][1]).to(tl.int32)
    return codes


@triton.jit
def _float_codes(sizes, facts: tl.constexpr):
    # Exponents counted from the lowest normalised binade; below it digits alone.
    bits = bits_of(sizes, facts.rounding.wide) & facts.rounding.infinity
    binades = tl.maximum(bits, facts.rounding.lowest_binade)
    inverse = facts.rounding.turn - (binades - facts.rounding.step_below)
    # With the leading one of normalised values.
    digits = (sizes * float_of(inverse, facts.rounding.wide)).to(tl.int32)
    fields = (binades - facts.rounding.lowest_binade) >> facts.rounding.mantissa
    fields = fields.to(tl.int32) << facts.mantissa
    if facts.implicit_one:
        return fields + digits
    else:
        return fields | digits


@triton.jit
def values_of(codes, facts: tl.constexpr):
    """The values that codes, int32, stand for: the inverse of `codes_of`."""
    if facts.kind == "integer":
        return _as_float(codes - ((codes >> (facts.width - 1)) << facts.width), facts)
    elif facts.kind == "table":
        return _table_values(codes, facts.rounding)
    elif facts.kind == "bfloat16":
        return (codes << 16).to(tl.float32, bitcast=True)
    else:
        below_sign: tl.constexpr = (1 << (facts.width - 1)) - 1
        fields = codes & below_sign
        if facts.kind == "sign-magnitude":
            sizes = _as_float(fields, facts)
        elif facts.kind == "log":
            powers = _as_bits(fields, facts) + facts.rounding.first_code
            sizes = float_of(powers << facts.rounding.mantissa, facts.rounding.wide)
            if facts.rounding.keeps_zero:
                sizes = tl.where(fields == 0, 0.0, sizes)
        else:
            sizes = _float_values(fields, facts)
        # By its bit: Triton's minus takes 0 to +0.
        top: tl.constexpr = 63 if facts.rounding.wide else 31
        signs = _as_bits((codes >> (facts.width - 1)) & 1, facts) << top
        return float_of(bits_of(sizes, facts.rounding.wide) | signs, facts.rounding.wide)


@triton.jit
def _table_values(codes, facts: tl.constexpr):
    kind: tl.constexpr = tl.float64 if facts.wide else tl.float32
    values = tl.full(codes.shape, facts.first, kind)
    entries: tl.constexpr = len(facts.table)
    for index in tl.static_range(entries):
        values = tl.where(codes > index, facts.table[index][1], values)
    return values


@triton.jit
def _float_values(fields, facts: tl.constexpr):
    binades = fields >> facts.mantissa
    digits = fields & ((1 << facts.mantissa) - 1)
    if facts.implicit_one:
        digits += tl.minimum(binades, 1) << facts.mantissa
        binades = tl.maximum(binades - 1, 0)
    lowest: tl.constexpr = facts.rounding.lowest_binade - facts.rounding.step_below
    steps = (_as_bits(binades, facts) << facts.rounding.mantissa) + lowest
    return _as_float(digits, facts) * float_of(steps, facts.rounding.wide)


@triton.jit
def _as_float(codes, facts: tl.constexpr):
    return codes.to(tl.float64 if facts.rounding.wide else tl.float32)


@triton.jit
def _as_bits(codes, facts: tl.constexpr):
    return codes.to(tl.int64 if facts.rounding.wide else tl.int32)


@triton.jit
def asymmetric_codes(values, zero_point):
    """The stored codes, int32, of values of an asymmetric integer."""
    return (values + zero_point).to(tl.int32)


@triton.jit
def bounded(values, bound: tl.constexpr):
    """Values up to a bound, unless that is 0."""
    if bound > 0.0:
        return clamp(values, -bound, bound)
    else:
        return values


@triton.jit
def unpacked(packed, index, is_there, width: tl.constexpr):
    """The codes, int32, with these numbers among packed ones; 0 where none is."""
    reach: tl.constexpr = width // 8 if width % 8 == 0 else (width + 14) // 8
    first = index.to(tl.int64) * width
    last = (first + (width - 1)) >> 3
    word = tl.zeros(index.shape, tl.int64)
    for step in tl.static_range(reach):
        at = (first >> 3) + step
        byte = tl.load(packed + at, mask=is_there & (at <= last), other=0)
        word |= byte.to(tl.int64) << (8 * step)
    return ((word >> (first & 7)) & ((1 << width) - 1)).to(tl.int32)


@triton.jit
def pack(codes, packed, count, size, width: tl.constexpr, bytes_at_once: tl.constexpr):
    """Bytes that hold codes without padding between them, `size` of them; a kernel."""
    at = tl.program_id(0).to(tl.int64) * bytes_at_once + tl.arange(0, bytes_at_once)
    most: tl.constexpr = (width + 6) // width + 1
    found = tl.zeros(at.shape, tl.int64)
    for step in tl.static_range(most):
        index = at * 8 // width + step
        code = tl.load(codes + index, mask=index < count, other=0).to(tl.int64)
        shift = index * width - at * 8
        code = (code & ((1 << width) - 1)) << tl.maximum(shift, 0)
        found |= code >> tl.maximum(-shift, 0)
    tl.store(packed + at, (found & 255).to(tl.uint8), mask=at < size)
