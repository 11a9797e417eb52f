"""The Triton kernels: a program reads a tile of blocks, rounds it and writes it, once each.

One kernel per kind of scale; the kind of element is part of what each is compiled for.
"""

import triton
import triton.language as tl

from mpq.kernels.triton_memory import offsets, place, read, write
from mpq.kernels.triton_rounding import round_alone, round_asymmetric, round_to_element
from mpq.kernels.triton_scaling import (
    INFINITY,
    are_safe,
    asymmetric_units,
    extremes,
    float_units,
    in_units,
    peak_bits,
    poisoned,
    power_units,
    powers_peaks,
    saturated,
    scaled_back,
    units_in_float64,
)


@triton.jit
def quantize_alone(
    x, out, count, extents, strides, out_strides, facts: tl.constexpr, tile: tl.constexpr
):
    """Values of elements without a stored scale."""
    outer, inner, row, column, is_there, _, _, _ = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile.dtype)
    rounded = round_alone(values, facts).to(tl.float32) * facts.unit
    result = poisoned(rounded, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    write(out, offsets(outer, inner, row, column, out_strides), is_there, result, tile.dtype)


@triton.jit
def find_peaks(x, peaks, count, extents, strides, facts: tl.constexpr, tile: tl.constexpr):
    """The bits of the largest magnitude of each piece of a row, [rows, pieces]; more if asked.

    With `extremes` those of the lowest value and the highest follow, 0 included, in the same
    shape; with `finite` the largest magnitude is that of the finite values.
    """
    outer, inner, row, column, is_there, line, across, is_block = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile.dtype)
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
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile.dtype)
    peaks = powers_peaks(values, given, line, is_block, facts)
    if facts.powers.always_wide:
        result = _powers_in_float64(values, peaks, facts, tile)
    elif are_safe(peaks, facts.powers):
        unit, inverse = power_units(peaks, facts.powers.single, False)
        rounded = round_to_element(values * inverse, facts.single)
        result = saturated(rounded, unit, facts.held) * unit
    else:
        result = _powers_in_float64(values, peaks, facts, tile)
    result = poisoned(result, peaks)
    write(out, offsets(outer, inner, row, column, out_strides), is_there, result, tile.dtype)


@triton.jit
def _powers_in_float64(values, peaks, facts: tl.constexpr, tile: tl.constexpr):
    unit, inverse = units_in_float64(values, peaks, facts, tile)
    rounded = round_to_element(values.to(tl.float64) * inverse, facts.double)
    return (saturated(rounded, unit, facts.held) * unit).to(tl.float32)


@triton.jit
def quantize_floats(
    x, out, given, count, extents, strides, out_strides, facts: tl.constexpr, tile: tl.constexpr
):
    """Values of blocks with a float scale. `given` as in `float_units`."""
    outer, inner, row, column, is_there, line, _, is_block = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile.dtype)
    _, unit, peaks = float_units(values, given, line, is_block, facts)
    rounded = round_to_element(in_units(values, unit), facts.rounding)
    result = poisoned(scaled_back(rounded, unit, facts.held), peaks)
    write(out, offsets(outer, inner, row, column, out_strides), is_there, result, tile.dtype)


@triton.jit
def quantize_asymmetric(
    x, out, given, count, extents, strides, out_strides, facts: tl.constexpr, tile: tl.constexpr
):
    """Values of blocks with a float scale and a zero point. `given` as in `asymmetric_units`."""
    outer, inner, row, column, is_there, line, _, is_block = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile.dtype)
    unit, zero_point, peaks = asymmetric_units(values, given, line, is_block, facts)
    rounded = round_asymmetric(in_units(values, unit), zero_point, facts.rounding)
    result = poisoned(saturated(rounded, unit, facts.held) * unit, peaks)
    write(out, offsets(outer, inner, row, column, out_strides), is_there, result, tile.dtype)
