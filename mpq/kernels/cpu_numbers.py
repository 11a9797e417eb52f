"""A format as the plain numbers that compiled loops take: one compilation serves every width."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mpq.formats.block import TENSOR, WHOLE
from mpq.formats.element import (
    Element,
    FloatElement,
    IntegerElement,
    LogElement,
    TableElement,
    has_negative_zero,
)
from mpq.formats.format import Format
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent
from mpq.kernels.bits import FLOAT32, largest_held
from mpq.kernels.rounding import fits_float32, table_thresholds
from mpq.kernels.scaling import (
    BLOCK_SCALE,
    HIGHEST_SAFE,
    LOWEST_UNIT,
    SCALE_DIGITS,
    exponent_offset,
)

INTEGER, FLOAT, POWER, TABLE, ASYMMETRIC = range(5)
"""How an element is rounded to."""

SHARED, SYMMETRIC, SPANNING, NESTED, GIVEN = range(5)
"""Where a block's unit comes from; GIVEN: from outside, one for all."""

STORED_FLOAT32, STORED_BFLOAT16, STORED_FLOAT16 = range(3)
"""What a float scale is stored as."""

TABLE_ENTRIES = 16
"""Entries of the tables that the loops take; shorter ones are filled up."""


class Rounding(NamedTuple):
    """What the loops need to round to an element; its fields are float32 unless they say so.

    Attributes:
        kind: INTEGER, FLOAT, POWER, TABLE or ASYMMETRIC.
        low: The least value, in units of the element.
        high: The largest.
        zero: What is added last: 0 takes -0 away, -0 keeps it.
        shift: Bits of a float32's mantissa that are rounded off.
        normal: The lowest normalised value of a float element.
        magic: Adding and taking it away rounds to the steps below `normal`.
        first: A POWER's exponent field, as float32's, that has code 0.
        lowest: The bits of a POWER's smallest magnitude.
        underflow: The bits of the largest magnitude that becomes zero; -1: none does.
        thresholds: The least values that round to each entry of a table but the first.
        values: The entries.
        largest: The element's largest magnitude, a Python float.
        step: The exponent of a float's or POWER's lowest binade.
        digits: Digits after the leading one.
    """

    kind: int
    low: np.float32
    high: np.float32
    zero: np.float32
    shift: int
    normal: np.float32
    magic: np.float32
    first: int
    lowest: int
    underflow: int
    thresholds: NDArray[np.float32]
    values: NDArray[np.float32]
    largest: float
    step: int
    digits: int


class Scaling(NamedTuple):
    """What the loops need to choose the scale of a block.

    Attributes:
        kind: SHARED, SYMMETRIC, SPANNING, NESTED or GIVEN.
        stored: STORED_FLOAT32, STORED_BFLOAT16 or STORED_FLOAT16.
        spans: Whether a coarse scale gives way to the next below it (zero points).
        carry: What a rule adds to the bits of a float64 maximum before its exponent is read.
        lowest: The least exponent of a block's maximum that can be stored.
        highest: The largest.
        offset: The exponent of the maximum above that of the unit.
        lowest_safe: The bits of the least maximum with which float32 computes a block.
        highest_safe: The bits of the largest.
        zeros_matter: Whether a block of zeros needs its own scale.
        held: The largest value that the dtype of the result holds.
        limit: Its largest finite number.
    """

    kind: int
    stored: int
    spans: bool
    carry: int
    lowest: int
    highest: int
    offset: int
    lowest_safe: int
    highest_safe: int
    zeros_matter: bool
    held: float
    limit: float


class Numbers(NamedTuple):
    """A format for results of a dtype.

    Attributes:
        element: How values are rounded.
        scale: How scales are chosen.
        block_scale: How the e4m3 of a nested scale is rounded.
    """

    element: Rounding
    scale: Scaling
    block_scale: Rounding


class Given(NamedTuple):
    """One unit for all values, float32 throughout.

    Attributes:
        unit: The value of an element's 1; NaN poisons all.
        divisor: What brings values to units of the element.
        zero_point: Of an asymmetric integer.
        low: The least value whose product with the unit the dtype holds.
        high: The largest.
        keeps_faults: Whether a value that is not finite becomes NaN, and no other does.
    """

    unit: np.float32
    divisor: np.float32
    zero_point: np.float32
    low: np.float32
    high: np.float32
    keeps_faults: bool


class Place(NamedTuple):
    """Where a tensor's blocks lie in memory, and how tiles are cut from it.

    Attributes:
        across: Whether blocks lie across memory (the axis is not the last), not along it.
        length: Values along the axis; blocks do not reach over its end.
        inner: Values between two neighbours along the axis.
        size: Values of a block along the axis.
        blocks: Blocks in a tile.
        row: Values below one scale of a nested pair (along).
        tiles: Tiles of the tensor.
        room: The most values in a tile.
    """

    across: bool
    length: int
    inner: int
    size: int
    blocks: int
    row: int
    tiles: int
    room: int


class Tile(NamedTuple):
    """Some neighbouring blocks.

    Attributes:
        across: As in Place.
        start: Where the first value stands in the tensor.
        height: Values of a block.
        blocks: The number of blocks.
        stored: Values along memory that are there; a last block along is filled up with zeros.
        count: Values, filled up.
        row: The scale above the first block.
    """

    across: bool
    start: int
    height: int
    blocks: int
    stored: int
    count: int
    row: int


def covers_format(format: Format) -> bool:
    """Whether the loops have this format.

    Not: binades below float32's normal ones (log9, e8m0, dmf-e8m3), tables past 16 entries, blocks
    of several rows, tensor-wide shared exponents, and the mse rule, whose sums are in torch's
    order of addition.
    """
    element, scale, block = format.element, format.scale, format.block
    if block is not None and block != TENSOR and block.rows != 1:
        return False
    if isinstance(scale, SharedExponent):
        is_known = scale.rule != "mse" and block is not None and block.rows != WHOLE
        return is_known and fits_float32(element)
    match element:
        case LogElement():
            return fits_float32(element)
        case FloatElement(fraction=0):
            return fits_float32(element)
        case FloatElement(min_exponent=lowest):
            return lowest >= -126  # below it, float32's own steps grow no finer
        case TableElement(values=values):
            return len(values) <= TABLE_ENTRIES
    return True


def numbers_of(format: Format, dtype: torch.dtype) -> Numbers:
    """The numbers of a format whose scales are chosen for each block."""
    return Numbers(
        element=rounding_numbers(format.element),
        scale=scaling_numbers(format, dtype),
        block_scale=rounding_numbers(BLOCK_SCALE),
    )


@lru_cache(maxsize=1024)
def rounding_numbers(element: Element, bound: float = 0.0) -> Rounding:
    """The numbers of an element; `bound` is a value of it that stands in for its largest."""
    largest = bound or min(element.largest, float(np.finfo(np.float32).max))
    low, high = -largest, largest
    if isinstance(element, IntegerElement) and element.code == "two's complement" and not bound:
        low -= 1
    digits = element.fraction if isinstance(element, FloatElement) else 0
    step = 0 if isinstance(element, IntegerElement | TableElement) else element.min_exponent
    has_zero = not (isinstance(element, LogElement) and not element.zero)
    thresholds = np.full(TABLE_ENTRIES, np.inf, dtype=np.float32)
    values = np.zeros(TABLE_ENTRIES, dtype=np.float32)
    if isinstance(element, TableElement):
        thresholds[: len(element.values) - 1] = table_thresholds(element, FLOAT32)
        values[:] = element.values[-1]
        values[: len(element.values)] = element.values
    return Rounding(
        kind=_rounding_kind(element),
        low=np.float32(low),
        high=np.float32(high),
        zero=np.float32(-0.0 if has_negative_zero(element) else 0.0),
        shift=FLOAT32.mantissa - digits,
        normal=np.float32(2.0**step),
        magic=np.float32(2.0 ** (step - digits + FLOAT32.mantissa)),
        first=FLOAT32.bias + step - (1 if has_zero else 0),
        lowest=FLOAT32.power(step),
        underflow=FLOAT32.power(step - 1) if has_zero else -1,
        thresholds=thresholds,
        values=values,
        largest=float(element.largest),
        step=step,
        digits=digits,
    )


def _rounding_kind(element: Element) -> int:
    match element:
        case IntegerElement(code="asymmetric"):
            return ASYMMETRIC
        case IntegerElement():
            return INTEGER
        case TableElement():
            return TABLE
        case FloatElement(fraction=fraction) if fraction > 0:
            return FLOAT
    return POWER


@lru_cache(maxsize=1024)
def scaling_numbers(format: Format, dtype: torch.dtype) -> Scaling:
    """The numbers of a format's scale for results of a dtype."""
    element, scale = format.element, format.scale
    kind, stored, spans = GIVEN, STORED_FLOAT32, False
    carry = lowest = highest = offset = 0
    if isinstance(scale, SharedExponent) and not isinstance(element, TableElement):
        kind, offset = SHARED, element.max_exponent
        own = exponent_offset(element, scale)
        lowest, highest = scale.lowest + own, scale.highest + own
        if scale.rule == "ceil":
            carry = (1 << 52) - 1
        elif isinstance(element, LogElement):
            carry = (1 << 51) - 1
    elif isinstance(scale, NestedScale):
        kind = NESTED
    elif isinstance(scale, FloatScale) and format.block != TENSOR:
        kind = SPANNING if scale.zero_point else SYMMETRIC
        stored = ("fp32", "bf16", "fp16").index(scale.dtype)
        spans = scale.zero_point and element.width <= SCALE_DIGITS[scale.dtype]
    limit = torch.finfo(dtype).max
    return Scaling(
        kind=kind,
        stored=stored,
        spans=spans,
        carry=carry,
        lowest=lowest,
        highest=highest,
        offset=offset,
        lowest_safe=_float32_bits(2.0 ** (offset + LOWEST_UNIT)),
        highest_safe=_float32_bits(HIGHEST_SAFE),
        zeros_matter=isinstance(element, LogElement) and not element.zero,
        held=largest_held(dtype),
        limit=limit,
    )


def _float32_bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))
