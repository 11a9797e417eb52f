"""Scales of blocks inside a Triton kernel: the steps of `scaling.py`, one for one.

A block is a row of [blocks, values]; what belongs to a block is [blocks, 1]. Divisions of float32
are `tl.div_rn`: a plain one compiles to an approximation.
"""

import triton
import triton.language as tl

from mpq.kernels.triton_rounding import (
    bits_of,
    clamp,
    float_of,
    held_magnitude,
    round_asymmetric,
    round_bfloat16,
    round_half_even,
    round_to_element,
    with_sign,
)

INFINITY = tl.constexpr(0x7F800000)
"""The bits of float32's +inf: magnitudes below are finite."""


@triton.jit
def saturated(values, unit, held: tl.constexpr):
    """Values bounded to those whose product with the unit the dtype holds."""
    passes = tl.where(tl.abs(unit) * held.reach <= held.threshold, 0, 1)
    if tl.max(passes) > 0:
        largest = held_magnitude(unit, False, held).to(values.dtype)
        if held.negative_zero:
            values = with_sign(tl.minimum(tl.abs(values), largest), values)
        else:
            lowest = (-held_magnitude(unit, True, held)).to(values.dtype)
            values = clamp(values, lowest, largest) + 0.0
    return values


@triton.jit
def scaled_back(values, unit, held: tl.constexpr):
    """Values times their unit, as far as the dtype holds them; 0 as the element has it."""
    product = saturated(values, unit, held) * unit
    if not held.negative_zero:
        # Not a sum with 0: fused with the product, it would keep the sign of what underflows.
        product = tl.where(product == 0.0, 0.0, product)
    return product


@triton.jit
def peak_bits(x):
    """The bits of the largest magnitude of each block, NaN above all."""
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(bits, axis=1, keep_dims=True)


@triton.jit
def extremes(values):
    """The lowest value of each block and the highest, 0 included."""
    low = tl.minimum(tl.min(values, axis=1, keep_dims=True), 0.0)
    return low, tl.maximum(tl.max(values, axis=1, keep_dims=True), 0.0)


@triton.jit
def divisor(unit):
    """The unit to divide by: 1 where it underflowed to 0, so that its block becomes 0."""
    return tl.where(unit == 0.0, 1.0, unit)


@triton.jit
def poisoned(values, peaks):
    """Values, NaN where a magnitude, given as its bits, is not finite."""
    return tl.where(peaks < INFINITY, values, float("nan"))


@triton.jit
def stored_scale(wanted, facts: tl.constexpr):
    """Scales rounded to the dtype in which they are stored, saturating."""
    bounded = clamp(wanted, -facts.largest, facts.largest)
    if facts.dtype == "bf16":
        return round_bfloat16(bounded)
    elif facts.dtype == "fp16":
        return bounded.to(tl.float16).to(tl.float32)
    else:
        return bounded


@triton.jit
def symmetric_unit(peaks, facts: tl.constexpr):
    """The stored float scales of blocks, from the bits of their largest magnitudes."""
    magnitudes = peaks.to(tl.float32, bitcast=True)
    return stored_scale(tl.div_rn(magnitudes, facts.divisor), facts)


@triton.jit
def signed_unit(low, high, facts: tl.constexpr):
    """The stored float scales that give the lowest code to what lies farthest from zero."""
    peaks = tl.where(high > -low, -high, -low)
    return stored_scale(tl.div_rn(peaks, facts.divisor), facts) + 0.0  # 0 is not -0


@triton.jit
def nested_scale(peaks, above, facts: tl.constexpr, block_scale: tl.constexpr):
    """The e4m3 scales of blocks under the float32 above them."""
    magnitudes = peaks.to(tl.float32, bitcast=True)
    wanted = tl.div_rn(tl.div_rn(magnitudes, facts.divisor), divisor(above))
    return round_to_element(wanted, block_scale)


@triton.jit
def float_units(values, given, line, is_block, facts: tl.constexpr):
    """What is stored of each block's float scale, its unit, and the bits that poison values.

    `given` holds, by `facts.source`: nothing (`block`); the bits of each row's peak (`row`), or
    under a signed scale what `ends` reads; the unit of all (`unit`); the scale above each row's
    blocks (`nested`).
    """
    if facts.source == "unit":
        unit = tl.load(given + line * 0, mask=is_block, other=0.0)
        # Each value poisons itself alone.
        return unit, unit, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    elif facts.source == "nested":
        peaks = peak_bits(values)
        above = tl.load(given + line * facts.per_row, mask=is_block, other=0.0)
        stored = nested_scale(peaks, above, facts.stored, facts.block_scale)
        return stored, stored * above, peaks
    elif facts.stored.is_signed:
        peaks, low, high = ends(values, given, line, is_block, facts)
        unit = signed_unit(low, high, facts.stored)
        return unit, unit, peaks
    else:
        if facts.source == "row":
            peaks = tl.load(given + line * facts.per_row, mask=is_block, other=0)
        else:
            peaks = peak_bits(values)
        unit = symmetric_unit(peaks, facts.stored)
        return unit, unit, peaks


@triton.jit
def asymmetric_units(values, given, line, is_block, facts: tl.constexpr):
    """The stored unit of each block, its zero point, and the bits that poison values.

    `given` as in `ends`.
    """
    peaks, low, high = ends(values, given, line, is_block, facts)
    unit = asymmetric_unit(low, high, facts.stored, facts.rounding)
    return unit, zero_points(low, divisor(unit), facts.rounding), peaks


@triton.jit
def ends(values, given, line, is_block, facts: tl.constexpr):
    """The bits of each block's peak, its lowest value and its highest, 0 included.

    `given`, if asked, holds those of each row.
    """
    if facts.source == "row":
        at = given + line * facts.per_row * 3
        peaks = tl.load(at, mask=is_block, other=0)
        low = tl.load(at + 1, mask=is_block, other=0).to(tl.float32, bitcast=True)
        high = tl.load(at + 2, mask=is_block, other=0).to(tl.float32, bitcast=True)
    else:
        peaks = peak_bits(values)
        low, high = extremes(values)
    return peaks, low, high


@triton.jit
def in_units(values, unit):
    """Values divided by their block's unit."""
    return tl.div_rn(values, tl.broadcast_to(divisor(unit), values.shape))


@triton.jit
def asymmetric_unit(low, high, facts: tl.constexpr, rounding: tl.constexpr):
    """The stored float scales of blocks that reach from a lowest value to a highest."""
    # In float64, where the difference neither overflows nor rounds before the quotient does.
    span = high.to(tl.float64) - low.to(tl.float64)
    stored = stored_scale((span / facts.divisor).to(tl.float32), facts)
    if facts.spans:
        unit = divisor(stored)
        zero_point = zero_points(low, unit, rounding)
        last = round_asymmetric(tl.div_rn(high, unit), zero_point, rounding) + zero_point
        below, is_positive = next_below(stored, facts)
        stored = tl.where((last < rounding.largest) & is_positive, below, stored)
    return stored


@triton.jit
def next_below(stored, facts: tl.constexpr):
    """The stored scales next below, and whether these are above zero."""
    if facts.dtype == "fp16":
        codes = stored.to(tl.float16).to(tl.int16, bitcast=True)
        return (codes - 1).to(tl.float16, bitcast=True).to(tl.float32), codes > 1
    else:
        bits = stored.to(tl.int32, bitcast=True)
        return (bits - facts.code).to(tl.float32, bitcast=True), bits > facts.code


@triton.jit
def zero_points(low, unit, rounding: tl.constexpr):
    """The whole numbers that stand for zero."""
    return clamp(round_half_even(tl.div_rn(-low, unit), rounding), 0.0, rounding.largest)


@triton.jit
def power_units(peaks, facts: tl.constexpr, is_wide: tl.constexpr):
    """The units of blocks with a shared exponent and their inverses, from their peaks' bits."""
    binades = (peaks + facts.carry) & facts.infinity
    binades = tl.minimum(tl.maximum(binades, facts.lowest), facts.highest)
    unit = binades - facts.down
    return float_of(unit, is_wide), float_of(facts.turn - unit, is_wide)


@triton.jit
def least_error(values, peaks, powers: tl.constexpr, rounding: tl.constexpr, tile: tl.constexpr):
    """Of the floor's units, the next lower and the next higher, those of least squared error."""
    unit, inverse = power_units(peaks, powers[0], True)
    least = squared_errors(values, unit, inverse, rounding, tile)
    for index in tl.static_range(1, 3):
        other, its_inverse = power_units(peaks, powers[index], True)
        error = squared_errors(values, other, its_inverse, rounding, tile)
        wins = error < least
        least = tl.where(wins, error, least)
        unit = tl.where(wins, other, unit)
        inverse = tl.where(wins, its_inverse, inverse)
    return unit, inverse


@triton.jit
def squared_errors(values, unit, inverse, rounding: tl.constexpr, tile: tl.constexpr):
    """The squared error of each block, summed in pairs of neighbours, as in eager."""
    error = round_to_element(values * inverse, rounding) * unit - values
    sums = error * error
    halvings: tl.constexpr = tile.halvings
    for _ in tl.static_range(halvings):
        pairs = tl.reshape(sums, (sums.shape[0], sums.shape[1] // 2, 2))
        left, right = tl.split(pairs)
        sums = left + right
    return sums


@triton.jit
def are_safe(peaks, facts: tl.constexpr):
    """Whether float32 computes every block: in the range where it holds units and products."""
    lowest = peaks
    if not facts.zeros_matter:
        lowest = tl.where(peaks == 0, INFINITY, peaks)  # any scale gives zeros their zeros
    return (tl.min(lowest) >= facts.lowest_safe) & (tl.max(peaks) <= facts.highest_safe)


@triton.jit
def powers_peaks(values, given, line, is_block, facts: tl.constexpr):
    """The bits of each block's peak: its own, or what is given of its row, if asked."""
    if facts.is_given:
        return tl.load(given + line * facts.per_row, mask=is_block, other=0)
    else:
        return peak_bits(values)


@triton.jit
def units_in_float64(values, peaks, facts: tl.constexpr, tile: tl.constexpr):
    """Units of blocks with a shared exponent and their inverses, in float64."""
    wide_peaks = bits_of(peaks.to(tl.float32, bitcast=True).to(tl.float64), True)
    if facts.least_error:
        wide = values.to(tl.float64)
        return least_error(wide, wide_peaks, facts.powers.double, facts.double, tile)
    else:
        return power_units(wide_peaks, facts.powers.double[0], True)
