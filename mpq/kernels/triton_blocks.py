"""The Triton kernels: a program reads a tile of blocks, rounds it and writes it, once each.

One kernel per kind of scale; the kind of element is part of what each is compiled for.
"""

import triton
import triton.language as tl

from mpq.kernels.triton_memory import offsets, place, read, write
from mpq.kernels.triton_rounding import bits_of, round_asymmetric, round_to_element
from mpq.kernels.triton_scaling import (
    INFINITY,
    are_safe,
    asymmetric_unit,
    divisor,
    extremes,
    least_error,
    nested_unit,
    peak_bits,
    poisoned,
    power_units,
    saturated,
    symmetric_unit,
    zero_points,
)


@triton.jit
def quantize_alone(
    x, out, count, extents, strides, out_strides, facts: tl.constexpr, tile: tl.constexpr
):
    """Values of elements without a stored scale."""
    outer, inner, row, column, is_there, _, _, _ = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile)
    scaled = values * facts.inverse
    if facts.rounding.wide:
        scaled = scaled.to(tl.float64)
    rounded = round_to_element(scaled, facts.rounding).to(tl.float32) * facts.unit
    result = poisoned(rounded, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    write(out, offsets(outer, inner, row, column, out_strides), is_there, result, tile)


@triton.jit
def find_peaks(x, peaks, count, extents, strides, facts: tl.constexpr, tile: tl.constexpr):
    """The bits of the largest magnitude of each piece of a row, [rows, pieces]; more if asked.

    With `extremes` those of the lowest value and the highest follow, 0 included, in the same
    shape; with `finite` the largest magnitude is that of the finite values.
    """
    outer, inner, row, column, is_there, line, across, is_block = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile)
    at = peaks + line.to(tl.int64) * extents[0] + across
    if facts.finite:
        values = tl.where((values.to(tl.int32, bitcast=True) & INFINITY) < INFINITY, values, 0.0)
    tl.store(at, peak_bits(values), mask=is_block)
    if facts.extremes:
        low, high = extremes(values)
        tl.store(at + count, low.to(tl.int32, bitcast=True), mask=is_block)
        tl.store(at + count + count, high.to(tl.int32, bitcast=True), mask=is_block)


@triton.jit
def quantize_powers(
    x, out, given, count, extents, strides, out_strides, facts: tl.constexpr, tile: tl.constexpr
):
    """Values of blocks with a shared exponent. `given`: the bits of each row's peak, if asked."""
    outer, inner, row, column, is_there, line, _, is_block = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile)
    if facts.is_given:
        peaks = tl.load(given + line * facts.per_row, mask=is_block, other=0)
    else:
        peaks = peak_bits(values)
    if facts.powers.always_wide:
        result = _powers_in_float64(values, peaks, facts, tile)
    elif are_safe(peaks, facts.powers):
        unit, inverse = power_units(peaks, facts.powers.single, False)
        rounded = round_to_element(values * inverse, facts.single)
        result = saturated(rounded, unit, facts.held) * unit
    else:
        result = _powers_in_float64(values, peaks, facts, tile)
    result = poisoned(result, peaks)
    write(out, offsets(outer, inner, row, column, out_strides), is_there, result, tile)


@triton.jit
def _powers_in_float64(values, peaks, facts: tl.constexpr, tile: tl.constexpr):
    wide = values.to(tl.float64)
    wide_peaks = bits_of(peaks.to(tl.float32, bitcast=True).to(tl.float64), True)
    if facts.least_error:
        unit, inverse = least_error(wide, wide_peaks, facts.powers.double, facts.double, tile)
    else:
        unit, inverse = power_units(wide_peaks, facts.powers.double[0], True)
    rounded = round_to_element(wide * inverse, facts.double)
    return (saturated(rounded, unit, facts.held) * unit).to(tl.float32)


@triton.jit
def quantize_floats(
    x, out, given, count, extents, strides, out_strides, facts: tl.constexpr, tile: tl.constexpr
):
    """Values of blocks with a float scale.

    `given` holds, by `facts.source`: nothing (`block`); the bits of each row's peak (`row`); the
    unit of all (`unit`); the scale above each row's blocks (`nested`).
    """
    outer, inner, row, column, is_there, line, _, is_block = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile)
    peaks = peak_bits(values)
    if facts.source == "unit":
        unit = tl.load(given + line * 0, mask=is_block, other=0.0)
        peaks = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # each poisons itself alone
    elif facts.source == "nested":
        above = tl.load(given + line * facts.per_row, mask=is_block, other=0.0)
        unit = nested_unit(peaks, above, facts.stored, facts.block_scale)
    else:
        if facts.source == "row":
            peaks = tl.load(given + line * facts.per_row, mask=is_block, other=0)
        unit = symmetric_unit(peaks, facts.stored)
    scaled = tl.div_rn(values, tl.broadcast_to(divisor(unit), values.shape))
    rounded = round_to_element(scaled, facts.rounding)
    result = poisoned(saturated(rounded, unit, facts.held) * unit, peaks)
    write(out, offsets(outer, inner, row, column, out_strides), is_there, result, tile)


@triton.jit
def quantize_asymmetric(
    x, out, given, count, extents, strides, out_strides, facts: tl.constexpr, tile: tl.constexpr
):
    """Values of blocks with a float scale and a zero point.

    `given`, if asked: of each row the bits of its peak, its lowest value and its highest.
    """
    outer, inner, row, column, is_there, line, _, is_block = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile)
    if facts.source == "row":
        at = given + line * facts.per_row * 3
        peaks = tl.load(at, mask=is_block, other=0)
        low = tl.load(at + 1, mask=is_block, other=0).to(tl.float32, bitcast=True)
        high = tl.load(at + 2, mask=is_block, other=0).to(tl.float32, bitcast=True)
    else:
        peaks = peak_bits(values)
        low, high = extremes(values)
    unit = asymmetric_unit(low, high, facts.stored, facts.rounding)
    zero_point = zero_points(low, divisor(unit), facts.rounding)
    scaled = tl.div_rn(values, tl.broadcast_to(divisor(unit), values.shape))
    rounded = round_asymmetric(scaled, zero_point, facts.rounding)
    result = poisoned(saturated(rounded, unit, facts.held) * unit, peaks)
    write(out, offsets(outer, inner, row, column, out_strides), is_there, result, tile)
