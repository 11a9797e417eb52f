"""The Triton kernels that decode: a program reads packed codes and scales, and writes values."""

import triton
import triton.language as tl

from mpq.kernels.triton_codes import bounded, unpacked, values_of
from mpq.kernels.triton_memory import number, offsets, place, read, write
from mpq.kernels.triton_rounding import float_of
from mpq.kernels.triton_scaling import saturated, scaled_back


@triton.jit
def decode_alone(out, codes, count, extents, strides, facts: tl.constexpr, tile: tl.constexpr):
    """Values of elements without a stored scale."""
    outer, inner, row, column, is_there, _, _, _ = place(count, extents, tile)
    at = offsets(outer, inner, row, column, strides)
    found = unpacked(codes, at, is_there, facts.single.width)
    if facts.wide:
        values = bounded(values_of(found, facts.double), facts.bound)
    else:
        values = bounded(values_of(found, facts.single), facts.bound)
    write(out, at, is_there, values * facts.unit, tile.dtype)


@triton.jit
def decode_powers(
    out, codes, exponents, count, extents, strides, facts: tl.constexpr, tile: tl.constexpr
):
    """Values of blocks with a shared exponent."""
    outer, inner, row, column, is_there, line, across, is_block = place(count, extents, tile)
    at = offsets(outer, inner, row, column, strides)
    found = unpacked(codes, at, is_there, facts.single.width)
    which = number(line, across, extents, facts.shared)
    stored = unpacked(exponents, which, is_block, facts.scale_width).to(tl.int64)
    bits = facts.lowest_unit + (stored << facts.double.rounding.mantissa)
    unit = float_of(bits, True)
    if facts.wide:
        result = _product_in_float64(found, unit, facts)
    elif (tl.min(unit) >= 2.0**-126) & (tl.max(unit) <= 2.0**127):
        single = unit.to(tl.float32)
        result = saturated(values_of(found, facts.single), single, facts.held) * single
    else:
        result = _product_in_float64(found, unit, facts)
    write(out, at, is_there, result, tile.dtype)


@triton.jit
def _product_in_float64(codes, unit, facts: tl.constexpr):
    values = values_of(codes, facts.double)
    return (saturated(values, unit, facts.held) * unit).to(tl.float32)


@triton.jit
def decode_floats(
    out,
    codes,
    scales,
    beside,
    count,
    extents,
    strides,
    facts: tl.constexpr,
    tile: tl.constexpr,
):
    """Values of blocks with a float scale.

    `scales` holds those of blocks as they are stored, or the calibrated one of all; `beside` zero
    points, packed, or the float32 scales above those of blocks, or nothing.
    """
    outer, inner, row, column, is_there, line, across, is_block = place(count, extents, tile)
    at = offsets(outer, inner, row, column, strides)
    found = unpacked(codes, at, is_there, facts.single.width)
    which = number(line, across, extents, facts.shared)
    if facts.scale == "calibrated":
        unit = tl.load(scales + which * 0, mask=is_block, other=0.0)
    elif facts.scale == "nested":
        above = tl.load(beside + line * facts.per_row, mask=is_block, other=0.0)
        unit = values_of(unpacked(scales, which, is_block, 8), facts.block_scale) * above
    else:
        unit = read(scales, which, is_block, facts.scale)
    if facts.has_zero_point:
        zeros = unpacked(beside, which, is_block, facts.single.width)
        values = found.to(tl.float32) - zeros.to(tl.float32)
    else:
        values = values_of(found, facts.single)
    write(out, at, is_there, scaled_back(values, unit, facts.held), tile.dtype)
