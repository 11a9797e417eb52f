"""What the Triton kernels are told of what is stored, codes and scales, as plain frozen data."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from mpq.formats.block import TENSOR
from mpq.formats.element import Element, FloatElement, IntegerElement, LogElement, TableElement
from mpq.formats.format import Format
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent, StaticScale
from mpq.kernels.bits import FLOAT64
from mpq.kernels.eager import CASTS, bound_in
from mpq.kernels.encoded import unit_exponent
from mpq.kernels.rounding import fits_float32
from mpq.kernels.scaling import BLOCK_SCALE
from mpq.kernels.triton_elements import Held, Rounding, held_facts, rounding_facts
from mpq.kernels.triton_scales import Alone, FloatScales, SharedPowers

CodeKind = Literal["integer", "asymmetric", "sign-magnitude", "float", "log", "table", "bfloat16"]
Shared = Literal["block", "row", "tensor"]
"""What shares a stored scale: a tile's block, or where that is but a piece, its row, or all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """How an element's values are coded, in one arithmetic.

    Attributes:
        kind: The rule; `integer` is two's complement.
        width: Bits of a code.
        mantissa: Of floats, bits of the mantissa field.
        implicit_one: Of floats, whether the leading one is left out of it.
        rounding: How values are rounded in the arithmetic, whose bits are told there.
    """

    kind: CodeKind
    width: int
    mantissa: int
    implicit_one: bool
    rounding: Rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How blocks become codes and scales.

    Attributes:
        scales: What `quantize` is told of the same blocks.
        single: How values are coded in float32.
        double: How they are coded in float64.
        block_scale: How the block scale of a nested scale is coded.
        shared: What shares a scale.
        lowest_unit: The bits, in float64, of the unit whose stored exponent is 0.
    """

    scales: Alone | SharedPowers | FloatScales
    single: Coding
    double: Coding
    block_scale: Coding
    shared: Shared
    lowest_unit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How codes and scales become values.

    Attributes:
        single: How codes are read in float32.
        double: How they are read in float64.
        wide: Whether float32 does not hold the element.
        held: How far values go that the result's dtype holds.
        bound: Of elements without a stored scale, the largest value that it holds; 0: all.
        unit: Of these, the value of the element's 1.
        block_scale: How the block scale of a nested scale is coded.
        scale: How the scale is stored: `exponent`, `bf16`, `fp16` or `fp32`, `nested`, or
            `calibrated`, which is not.
        scale_width: Bits of a stored exponent.
        lowest_unit: The bits, in float64, of the unit whose stored exponent is 0.
        has_zero_point: Whether zero points are stored.
        shared: What shares a scale.
        per_row: 1 where each row has a scale above those of its blocks, 0 where one is for all.
    """

    single: Coding
    double: Coding
    wide: bool
    held: Held
    bound: float
    unit: float
    block_scale: Coding
    scale: str
    scale_width: int
    lowest_unit: int
    has_zero_point: bool
    shared: Shared
    per_row: int


@lru_cache(maxsize=1024)
def coding_facts(element: Element, *, wide: bool = False) -> Coding:
    """How values of an element, in float64 (`wide`) or float32, are coded."""
    return Coding(
        kind=_kind(element, wide=wide),
        width=element.width,
        mantissa=element.mantissa if isinstance(element, FloatElement) else 0,
        implicit_one=isinstance(element, FloatElement) and element.implicit_one,
        rounding=rounding_facts(element, wide=wide),
    )


def encoding_facts(
    format: Format, scales: Alone | SharedPowers | FloatScales, *, in_pieces: bool
) -> Encoding:
    """How blocks are encoded of which `quantize` is told `scales`."""
    return Encoding(
        scales=scales,
        single=coding_facts(format.element),
        double=coding_facts(format.element, wide=True),
        block_scale=coding_facts(BLOCK_SCALE),
        shared=_shared(format, in_pieces=in_pieces),
        lowest_unit=_lowest_unit(format),
    )


@lru_cache(maxsize=1024)
def decoding_facts(format: Format, dtype: torch.dtype, *, in_pieces: bool) -> Decoding:
    """How codes of a format become values of a dtype."""
    element, scale = format.element, format.scale
    fraction = scale.fraction if isinstance(scale, StaticScale) else 0
    is_cast = isinstance(element, FloatElement) and element in CASTS
    return Decoding(
        single=coding_facts(element),
        double=coding_facts(element, wide=True),
        wide=not fits_float32(element) and not is_cast,
        held=held_facts(element, dtype),
        bound=bound_in(dtype, element, fraction),
        unit=2.0**-fraction,
        block_scale=coding_facts(BLOCK_SCALE),
        scale=_stored_as(format),
        scale_width=scale.width if isinstance(scale, SharedExponent) else 0,
        lowest_unit=_lowest_unit(format),
        has_zero_point=isinstance(scale, FloatScale) and scale.zero_point,
        shared=_shared(format, in_pieces=in_pieces),
        per_row=int(isinstance(scale, NestedScale) and scale.per_row),
    )


def _kind(element: Element, *, wide: bool) -> CodeKind:
    match element:
        case IntegerElement(code="asymmetric" | "sign-magnitude" as code):
            return code
        case IntegerElement():
            return "integer"
        case FloatElement():
            is_cast = not wide and CASTS.get(element) == torch.bfloat16
            return "bfloat16" if is_cast else "float"
        case LogElement():
            return "log"
        case TableElement():
            return "table"


def _shared(format: Format, *, in_pieces: bool) -> Shared:
    if not in_pieces:
        return "block"
    return "tensor" if format.block == TENSOR else "row"


def _stored_as(format: Format) -> str:
    match format.scale:
        case SharedExponent():
            return "exponent"
        case NestedScale():
            return "nested"
        case FloatScale(absmax=None, dtype=dtype):
            return dtype
    return "calibrated"


def _lowest_unit(format: Format) -> int:
    if not isinstance(format.scale, SharedExponent):
        return 0
    return FLOAT64.power(unit_exponent(format))
