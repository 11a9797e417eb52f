"""Rounding to an element inside a Triton kernel: the steps of `rounding.py`, one for one.

Each function takes float32 or float64 and the `Rounding` of that arithmetic. Nothing here lets a
compiler choose another result: no division, and products whose sums are never fused.
"""

import triton
import triton.language as tl


@triton.jit
def bits_of(x, is_wide: tl.constexpr):
    """The bits of floats, as integers of their size."""
    if is_wide:
        return x.to(tl.int64, bitcast=True)
    else:
        return x.to(tl.int32, bitcast=True)


@triton.jit
def float_of(bits, is_wide: tl.constexpr):
    """The floats that have these bits."""
    if is_wide:
        return bits.to(tl.float64, bitcast=True)
    else:
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def with_sign(magnitudes, signs):
    """Magnitudes with the signs of other floats of their dtype, those of zeros too."""
    is_wide: tl.constexpr = signs.dtype == tl.float64
    bits = bits_of(signs, is_wide)
    return float_of(
        bits_of(magnitudes, is_wide) | (bits - bits_of(tl.abs(signs), is_wide)), is_wide
    )


@triton.jit
def clamp(x, lowest, largest):
    """`x` between two bounds; NaN becomes anything."""
    return tl.minimum(tl.maximum(x, lowest), largest)


@triton.jit
def round_half_even(x, facts: tl.constexpr):
    """The nearest whole number, ties to even; the sign of zero is kept.

    From 2^mantissa on floats are whole; below, adding and taking away 2^mantissa leaves no room
    for a fraction, and the addition rounds it to nearest even.
    """
    size = tl.abs(x)
    rounded = tl.where(size < facts.whole, (size + facts.whole) - facts.whole, size)
    return with_sign(rounded, x)


@triton.jit
def round_bfloat16(x):
    """The nearest bfloat16 of finite float32, ties to even, as float32.

    By its bits: the upper half, and a carry from the lower half into it.
    """
    bits = x.to(tl.int32, bitcast=True)
    is_odd = (bits >> 16) & 1
    return (((bits + is_odd + 0x7FFF) >> 16) << 16).to(tl.float32, bitcast=True)


@triton.jit
def round_to_element(x, facts: tl.constexpr):
    """The nearest values of an element without a zero point; of NaN, any value."""
    if facts.kind == "integer":
        rounded = round_half_even(clamp(x, facts.lowest, facts.largest), facts)
        if not facts.negative_zero:
            rounded = rounded + 0.0
        return rounded
    elif facts.kind == "float":
        return _round_to_float(clamp(x, facts.lowest, facts.largest), facts)
    elif facts.kind == "power":
        return _round_to_power(clamp(x, facts.lowest, facts.largest), facts)
    elif facts.kind == "bfloat16":
        return round_bfloat16(clamp(x, facts.lowest, facts.largest))
    else:
        return _round_to_table(x, facts)


@triton.jit
def round_alone(x, facts: tl.constexpr):
    """The nearest values of an element without a stored scale, in its units."""
    scaled = x * facts.inverse
    if facts.rounding.wide:
        scaled = scaled.to(tl.float64)
    return round_to_element(scaled, facts.rounding)


@triton.jit
def round_asymmetric(x, zero_point, facts: tl.constexpr):
    """The nearest values of an asymmetric integer, less its zero point."""
    rounded = round_half_even(x, facts)
    # Ties go to the even stored code, rounded + zero_point: where the zero point is odd, a tie
    # (twice the error is 1 or -1) goes the other way.
    error = (x - rounded) * 2.0
    is_tie = (error == 1.0) | (error == -1.0)
    half = zero_point * 0.5
    is_odd = round_half_even(half, facts) != half
    rounded = tl.where(is_tie & is_odd, rounded + error, rounded)
    return clamp(rounded, -zero_point, facts.largest - zero_point) + 0.0


@triton.jit
def _round_to_float(x, facts: tl.constexpr):
    # The step of each value's binade, 2^(exponent - fraction), and its inverse, from the bits.
    binades = tl.maximum(bits_of(x, facts.wide) & facts.infinity, facts.lowest_binade)
    steps = binades - facts.step_below
    whole = round_half_even(x * float_of(facts.turn - steps, facts.wide), facts)
    return whole * float_of(steps, facts.wide)


@triton.jit
def _round_to_power(x, facts: tl.constexpr):
    magnitudes = bits_of(tl.abs(x), facts.wide)
    # Midpoints are 1.5 * 2^k; a tie goes up where the code of 2^k is odd.
    is_odd = ((magnitudes >> facts.mantissa) - facts.first_code) & 1
    powers = (magnitudes + is_odd + facts.below_tie) & facts.infinity
    powers = tl.maximum(powers, facts.lowest_binade)
    if facts.keeps_zero:
        powers = tl.where(magnitudes <= facts.zero_below, 0, powers)
    return with_sign(float_of(powers, facts.wide), x)


@triton.jit
def _round_to_table(x, facts: tl.constexpr):
    rounded = tl.full(x.shape, facts.first, x.dtype)
    entries: tl.constexpr = len(facts.table)
    for index in tl.static_range(entries):
        rounded = tl.where(x >= facts.table[index][0], facts.table[index][1], rounded)
    return rounded


@triton.jit
def held_magnitude(unit, is_negative: tl.constexpr, facts: tl.constexpr):
    """The largest magnitude of an element whose product with each unit a dtype holds, float64."""
    wide = tl.abs(unit.to(tl.float64))
    largest: tl.constexpr = facts.reach if is_negative else facts.largest
    bound = tl.minimum(facts.bound / tl.where(wide == 0.0, 1.0, wide), largest)
    if facts.kind == "table":
        held = tl.zeros(bound.shape, tl.float64)
        if is_negative:
            below: tl.constexpr = len(facts.negative)
            for index in tl.static_range(below):
                held = tl.where(bound >= facts.negative[index], facts.negative[index], held)
        else:
            above: tl.constexpr = len(facts.positive)
            for index in tl.static_range(above):
                held = tl.where(bound >= facts.positive[index], facts.positive[index], held)
        return held
    elif (facts.kind == "integer") or (facts.kind == "asymmetric"):
        return tl.floor(bound)
    else:
        binades = bound.to(tl.int64, bitcast=True) & 0x7FF0000000000000
        binades = tl.maximum(binades, facts.lowest_binade)
        step = binades.to(tl.float64, bitcast=True) * facts.step
        return tl.floor(bound / step) * step
