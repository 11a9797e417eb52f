"""Compiled loops that round the values of a tile, as `mpq.kernels.rounding` does.

Loops are plain, so that LLVM vectorises them. numba takes whole numbers of 32 bits to 64 in every
operation; `int32` around each takes them back, or half as many would fit in a register.
"""

from typing import Any

import numpy as np
from numpy import float32, int32
from numpy.typing import NDArray

from mpq.kernels.cpu_compiler import bits_of, by_kind, compiled, float_of
from mpq.kernels.cpu_elements import Asymmetric, Floats, Integers, Powers, Table

Values = NDArray[np.float32]

INFINITY = int32(0x7F800000)
MAGNITUDE = int32(0x7FFFFFFF)
SIGN = int32(-0x80000000)


@compiled
def clamped(value: float32, low: float32, high: float32) -> float32:
    """The value within bounds."""
    capped = high if value > high else value
    return low if capped < low else capped


@compiled
def in_units(value: float32, unit: float32) -> float32:
    """The value in units of the element; an underflowed unit counts as 1."""
    return value if unit == 0 else float32(value / unit)


@compiled
def round_bits(magnitude: int32, shift: int32) -> int32:
    """The bits of a float32 without its last `shift` bits, to nearest, ties to even."""
    half = int32(int32(int32(1) << int32(shift)) >> int32(1))
    rounds = int32(half != 0)
    odd = int32(int32(magnitude >> int32(shift)) & rounds)
    raised = int32(int32(magnitude + int32(half - rounds)) + odd)
    return int32(raised & int32(int32(-1) << int32(shift)))


@compiled
def round_to_float(value: float32, r: Floats) -> float32:
    """The nearest value of a float element."""
    bits = bits_of(value)
    magnitude = float_of(int32(bits & MAGNITUDE))
    size = r.high if magnitude > r.high else magnitude
    steps = float32(float32(size + r.magic) - r.magic)
    digits = float_of(round_bits(bits_of(size), r.shift))
    rounded = steps if size < r.normal else digits
    return float_of(int32(bits_of(rounded) | int32(bits & SIGN)))


@compiled
def round_to_power(value: float32, r: Powers) -> float32:
    """The nearest power of two, or zero; a tie goes to the even code."""
    bits = bits_of(value)
    size = float_of(int32(bits & MAGNITUDE))
    magnitude = bits_of(r.high if size > r.high else size)
    odd = int32(int32(int32(magnitude >> int32(23)) - r.first) & int32(1))
    nearest = int32(int32(int32(magnitude + odd) + int32(0x3FFFFF)) & INFINITY)
    power = max(nearest, r.lowest)
    held = int32(0) if magnitude <= r.underflow else power
    return float_of(int32(held | int32(bits & SIGN)))


@compiled
def round_asymmetric(value: float32, zero_point: float32, highest: float32) -> float32:
    """The nearest whole number whose sum with the zero point is a code; a tie goes to even."""
    rounded = np.rint(value)
    error = np.trunc(float32((value - rounded) * float32(2.0)))
    half = float32(zero_point * float32(0.5))
    odd = float32(zero_point - float32(np.floor(half) * float32(2.0)))
    rounded = float32(rounded + float32(error * odd))
    return float32(clamped(rounded, -zero_point, float32(highest - zero_point)) + float32(0.0))


def round_values(v: Values, units: Values, extra: Values, count: int, r: Any) -> None:
    """Takes values to the nearest that their units and the element allow, in place.

    Args:
        v: The values.
        units: The unit of each.
        extra: Of asymmetric integers each value's zero point; of tables, scratch.
        count: How many there are.
        r: The element's numbers.
    """
    raise NotImplementedError("only compiled code calls this")


def _round_integers(v: Values, units: Values, extra: Values, count: int, r: Integers) -> None:  # noqa: ARG001
    for i in range(count):
        rounded = np.rint(clamped(in_units(v[i], units[i]), r.low, r.high))
        v[i] = float32(float32(rounded * units[i]) + r.zero)


def _round_asymmetric(v: Values, units: Values, extra: Values, count: int, r: Asymmetric) -> None:
    for i in range(count):
        rounded = round_asymmetric(in_units(v[i], units[i]), extra[i], r.high)
        v[i] = float32(float32(rounded * units[i]) + float32(0.0))


def _round_floats(v: Values, units: Values, extra: Values, count: int, r: Floats) -> None:  # noqa: ARG001
    for i in range(count):
        v[i] = round_to_float(in_units(v[i], units[i]), r) * units[i]


def _round_powers(v: Values, units: Values, extra: Values, count: int, r: Powers) -> None:  # noqa: ARG001
    for i in range(count):
        v[i] = round_to_power(in_units(v[i], units[i]), r) * units[i]


def _round_to_table(v: Values, units: Values, extra: Values, count: int, r: Table) -> None:
    for i in range(count):
        v[i] = in_units(v[i], units[i])
        extra[i] = r.values[0]
    for t in range(r.values.size - 1):
        threshold, entry = r.thresholds[t], r.values[t + 1]
        for i in range(count):
            extra[i] = entry if v[i] >= threshold else extra[i]
    for i in range(count):
        v[i] = float32(float32(extra[i] * units[i]) + float32(0.0))


by_kind(
    round_values,
    4,
    {
        Integers: _round_integers,
        Asymmetric: _round_asymmetric,
        Floats: _round_floats,
        Powers: _round_powers,
        Table: _round_to_table,
    },
)
