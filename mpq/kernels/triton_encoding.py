"""The Triton kernels that encode: a program reads a tile and writes its codes and its scales.

One kernel per kind of scale, as those that fake-quantise. Codes lie row-major, an integer each;
`triton_codes.pack` makes bytes of them. Where a tile holds a piece of what shares a scale, every
program that has one writes the same scale to the same place.
"""

import triton
import triton.language as tl

from mpq.kernels.triton_codes import asymmetric_codes, codes_of
from mpq.kernels.triton_memory import number, offsets, place, read, write
from mpq.kernels.triton_rounding import bits_of, round_alone, round_asymmetric, round_to_element
from mpq.kernels.triton_scaling import (
    are_safe,
    asymmetric_units,
    float_units,
    in_units,
    power_units,
    powers_peaks,
    units_in_float64,
)


@triton.jit
def encode_alone(
    x, out, count, extents, strides, out_strides, facts: tl.constexpr, tile: tl.constexpr
):
    """Codes of elements without a stored scale."""
    outer, inner, row, column, is_there, _, _, _ = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile.dtype)
    rounded = round_alone(values, facts.scales)
    if facts.scales.rounding.wide:
        codes = codes_of(rounded, facts.double)
    else:
        codes = codes_of(rounded, facts.single)
    _store(out, offsets(outer, inner, row, column, out_strides), is_there, codes)


@triton.jit
def encode_powers(
    x,
    out,
    exponents,
    given,
    count,
    extents,
    strides,
    out_strides,
    facts: tl.constexpr,
    tile: tl.constexpr,
):
    """Codes of blocks with a shared exponent, and the exponents. `given` as in `powers_peaks`."""
    outer, inner, row, column, is_there, line, across, is_block = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile.dtype)
    peaks = powers_peaks(values, given, line, is_block, facts.scales)
    unit, inverse = units_in_float64(values, peaks, facts.scales, tile)
    if facts.scales.powers.always_wide:
        codes = _codes_in_float64(values, inverse, facts)
    elif are_safe(peaks, facts.scales.powers):
        _, single = power_units(peaks, facts.scales.powers.single, False)
        codes = codes_of(round_to_element(values * single, facts.scales.single), facts.single)
    else:
        codes = _codes_in_float64(values, inverse, facts)
    _store(out, offsets(outer, inner, row, column, out_strides), is_there, codes)
    stored = (bits_of(unit, True) - facts.lowest_unit) >> facts.double.rounding.mantissa
    _store(exponents, number(line, across, extents, facts.shared), is_block, stored)


@triton.jit
def _codes_in_float64(values, inverse, facts: tl.constexpr):
    rounded = round_to_element(values.to(tl.float64) * inverse, facts.scales.double)
    return codes_of(rounded, facts.double)


@triton.jit
def encode_floats(
    x,
    out,
    scales,
    given,
    count,
    extents,
    strides,
    out_strides,
    facts: tl.constexpr,
    tile: tl.constexpr,
):
    """Codes of blocks with a float scale, and the scales. `given` as in `float_units`."""
    outer, inner, row, column, is_there, line, across, is_block = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile.dtype)
    stored, unit, _ = float_units(values, given, line, is_block, facts.scales)
    rounded = round_to_element(in_units(values, unit), facts.scales.rounding)
    codes = codes_of(rounded, facts.single)
    _store(out, offsets(outer, inner, row, column, out_strides), is_there, codes)
    at = number(line, across, extents, facts.shared)
    if facts.scales.source == "nested":
        _store(scales, at, is_block, codes_of(stored, facts.block_scale))
    elif facts.scales.source != "unit":
        write(scales, at, is_block, stored, facts.scales.stored.dtype)


@triton.jit
def encode_asymmetric(
    x,
    out,
    scales,
    zeros,
    given,
    count,
    extents,
    strides,
    out_strides,
    facts: tl.constexpr,
    tile: tl.constexpr,
):
    """Codes, scales and zero points of blocks that have both. `given` as in `asymmetric_units`."""
    outer, inner, row, column, is_there, line, across, is_block = place(count, extents, tile)
    values = read(x, offsets(outer, inner, row, column, strides), is_there, tile.dtype)
    unit, zero_point, _ = asymmetric_units(values, given, line, is_block, facts.scales)
    rounded = round_asymmetric(in_units(values, unit), zero_point, facts.scales.rounding)
    codes = asymmetric_codes(rounded, zero_point)
    _store(out, offsets(outer, inner, row, column, out_strides), is_there, codes)
    at = number(line, across, extents, facts.shared)
    write(scales, at, is_block, unit, facts.scales.stored.dtype)
    _store(zeros, at, is_block, zero_point.to(tl.int32))


@triton.jit
def _store(out, at, is_there, codes):
    tl.store(out + at, codes.to(out.dtype.element_ty), mask=is_there)
