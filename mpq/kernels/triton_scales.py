"""What the Triton kernels are told of a scale and the element under it, as plain frozen data."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from mpq.formats.element import (
    Element,
    ExponentElement,
    FloatElement,
    LogElement,
    reach,
    reaches_lower,
)
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent, StaticScale
from mpq.kernels.bits import FLOAT32, FLOAT64, FloatBits
from mpq.kernels.eager import CASTS, bound_in
from mpq.kernels.rounding import fits_float32
from mpq.kernels.scaling import (
    BLOCK_SCALE,
    HIGHEST_SAFE,
    LOWEST_UNIT,
    SCALE_DIGITS,
    SCALE_TORCH_DTYPES,
    exponent_offset,
)
from mpq.kernels.triton_elements import Held, Rounding, held_facts, rounding_facts

Source = Literal["block", "row", "unit", "nested"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponents:
    """How a block's largest magnitude becomes its unit, as bits of one arithmetic.

    Attributes:
        carry: Added to the magnitude's bits before the mantissa is cut off.
        infinity: The bits of +inf, which mask the exponent field.
        lowest: The lowest binade's bits.
        highest: The highest binade's bits.
        down: What the unit lies below its binade.
        turn: From which the unit's bits are taken for those of its inverse.
    """

    carry: int
    infinity: int
    lowest: int
    highest: int
    down: int
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Powers:
    """How a shared exponent is chosen.

    Attributes:
        always_wide: Whether every block is computed in float64.
        lowest_safe: The bits of the least largest magnitude that float32 computes.
        highest_safe: The bits of the largest such.
        zeros_matter: Whether the scale of a block of zeros shows in its result.
        single: The rule in float32.
        double: The rule in float64; under `mse` also with the unit one binade lower and higher.
    """

    always_wide: bool
    lowest_safe: int
    highest_safe: int
    zeros_matter: bool
    single: Exponents
    double: tuple[Exponents, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How a float scale is stored.

    Attributes:
        dtype: What it is stored as: `bf16`, `fp16` or `fp32`.
        largest: The largest scale.
        divisor: The element's largest magnitude, which the block's is divided by.
        is_signed: Whether it is below 0 where only a value above 0 has the largest magnitude.
        code: What a scale's bits in float32 lie above those of the next below (not of fp16).
        spans: Of asymmetric integers, whether a scale too coarse gives way to the next below.
    """

    dtype: str
    largest: float
    divisor: float
    is_signed: bool
    code: int
    spans: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """An element without a stored scale.

    Attributes:
        rounding: How it rounds.
        unit: The value of the element's 1.
        inverse: 1 / unit.
    """

    rounding: Rounding
    unit: float
    inverse: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPowers:
    """An element under a shared exponent.

    Attributes:
        powers: How the exponent is chosen.
        least_error: Whether it is the one of least squared error.
        single: How the element rounds in float32.
        double: How it rounds in float64.
        held: How far its values go.
        is_given: Whether the peaks of blocks are read instead of found.
        per_row: 1 where what is read belongs to each row, 0 where to all.
    """

    powers: Powers
    least_error: bool
    single: Rounding
    double: Rounding
    held: Held
    is_given: bool
    per_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatScales:
    """An element under a float scale.

    Attributes:
        source: Where the scale comes from: the block itself, the row's peak that is read, the
            unit that is read, or the block under the scale that is read (`nested`).
        rounding: How the element rounds.
        held: How far its values go.
        stored: How the scale is stored.
        block_scale: How the block scale of a nested scale rounds.
        per_row: 1 where what is read belongs to each row, 0 where to all.
    """

    source: Source
    rounding: Rounding
    held: Held
    stored: Stored
    block_scale: Rounding
    per_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What to find out about each piece of a row.

    Attributes:
        finite: Whether to leave out what is not finite.
        extremes: Whether to find the lowest and the highest value, too.
    """

    finite: bool = False
    extremes: bool = False


@lru_cache(maxsize=1024)
def alone_facts(element: Element, scale: StaticScale | None, dtype: torch.dtype) -> Alone:
    """How an element without a stored scale takes values of a dtype, which holds the result."""
    fraction = scale.fraction if scale else 0
    is_cast = isinstance(element, FloatElement) and element in CASTS
    wide = not fits_float32(element) and not is_cast
    bound = bound_in(dtype, element, fraction)
    return Alone(
        rounding=rounding_facts(element, wide=wide, bound=bound),
        unit=2.0**-fraction,
        inverse=2.0**fraction,
    )


@lru_cache(maxsize=1024)
def shared_power_facts(
    element: ExponentElement, scale: SharedExponent, dtype: torch.dtype, per_row: int | None
) -> SharedPowers:
    """How blocks of a dtype take an element under a shared exponent.

    Args:
        element: The element.
        scale: The shared exponent.
        dtype: The tensor's.
        per_row: Where the peaks are read: 1 for one of each row, 0 for one of all. None: found.
    """
    return SharedPowers(
        powers=power_facts(element, scale),
        least_error=scale.rule == "mse",
        single=rounding_facts(element),
        double=rounding_facts(element, wide=True),
        held=held_facts(element, dtype),
        is_given=per_row is not None,
        per_row=per_row or 0,
    )


@lru_cache(maxsize=1024)
def float_scale_facts(
    element: Element,
    scale: FloatScale | NestedScale,
    dtype: torch.dtype,
    source: Source,
    per_row: int,
) -> FloatScales:
    """How blocks of a dtype take an element under a float scale, which comes from `source`."""
    stored = scale if isinstance(scale, FloatScale) else FloatScale(dtype="fp32")
    return FloatScales(
        source=source,
        rounding=rounding_facts(element),
        held=held_facts(element, dtype),
        stored=stored_facts(element, stored),
        block_scale=rounding_facts(BLOCK_SCALE),
        per_row=per_row,
    )


@lru_cache(maxsize=1024)
def stored_facts(element: Element, scale: FloatScale) -> Stored:
    """How the element's float scale is stored."""
    return Stored(
        dtype=scale.dtype,
        largest=torch.finfo(SCALE_TORCH_DTYPES[scale.dtype]).max,
        divisor=reach(element),
        is_signed=reaches_lower(element),
        code=1 << FLOAT32.mantissa + 1 - SCALE_DIGITS[scale.dtype],
        spans=element.width <= SCALE_DIGITS[scale.dtype],
    )


@lru_cache(maxsize=1024)
def power_facts(element: ExponentElement, scale: SharedExponent) -> Powers:
    """How a shared exponent of the element is chosen."""
    zeros_matter = isinstance(element, LogElement) and not element.zero
    shifts = (0, -1, 1) if scale.rule == "mse" else (0,)
    lowest_safe = max(element.max_exponent + LOWEST_UNIT, 1 - FLOAT32.bias)
    return Powers(
        always_wide=scale.rule == "mse" or not fits_float32(element),
        lowest_safe=FLOAT32.power(lowest_safe),
        highest_safe=FLOAT32.power(int(math.log2(HIGHEST_SAFE))),
        zeros_matter=zeros_matter,
        single=_exponents(element, scale, FLOAT32, 0),
        double=tuple(_exponents(element, scale, FLOAT64, shift) for shift in shifts),
    )


def _exponents(
    element: ExponentElement, scale: SharedExponent, layout: FloatBits, shift: int
) -> Exponents:
    offset = exponent_offset(element, scale)
    lowest, highest = scale.lowest + offset - shift, scale.highest + offset - shift
    if layout is FLOAT32:
        # As in eager: blocks beyond never come here, but for zeros, which any scale gives zeros.
        lowest = max(lowest, element.max_exponent + LOWEST_UNIT)
        highest = min(highest, 127)
    carry = 0
    if scale.rule == "ceil":
        carry = (1 << layout.mantissa) - 1
    elif isinstance(element, LogElement):
        carry = (1 << layout.mantissa - 1) - 1
    return Exponents(
        carry=carry,
        infinity=layout.infinity,
        lowest=layout.power(lowest),
        highest=layout.power(highest),
        down=element.max_exponent - shift << layout.mantissa,
        turn=2 * layout.bias << layout.mantissa,
    )
