"""What compiled loops are told of a scale: plain numbers, in a tuple of a kind of their own.

Each kind says which blocks are ordinary: finite, with a scale and its inverse that float32 holds,
and values that the result's dtype holds. The loops round those; all others are eager's.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mpq.formats.element import Element, ExponentElement, LogElement, reach, reaches_lower
from mpq.formats.format import NAMED_FLOATS
from mpq.formats.scale import FloatScale, SharedExponent
from mpq.kernels.bits import FLOAT32
from mpq.kernels.cpu_elements import Floats, Rounding, float_numbers
from mpq.kernels.scaling import (
    BLOCK_SCALE,
    HIGHEST_SAFE,
    LOWEST_UNIT,
    SCALE_DIGITS,
    exponent_offset,
)


class Given(NamedTuple):
    """One unit for all values; what is finite is ordinary.

    Attributes:
        unit: The value of an element's 1.
        zero_point: Of an asymmetric integer.
    """

    unit: np.float32
    zero_point: np.float32


class Shared(NamedTuple):
    """A power of two for each block; all but `down` are bits of a float32.

    Attributes:
        carry: What the rule adds to a block's largest magnitude before its exponent is read.
        lowest: The least binade.
        highest: The largest.
        down: What the unit lies below its binade.
        zero: The largest magnitude of an ordinary block of zeros; -1: none is.
        least: The least magnitude of any other ordinary block.
        most: The largest.
    """

    carry: np.int32
    lowest: np.int32
    highest: np.int32
    down: np.int32
    zero: np.int32
    least: np.int32
    most: np.int32


class Symmetric(NamedTuple):
    """A float for each block.

    Attributes:
        largest: The element's largest magnitude.
        stored: The floats that a scale can be.
        most: The largest unit of an ordinary block.
    """

    largest: np.float32
    stored: Floats
    most: np.float32


class Signed(NamedTuple):
    """A float for each block, of the sign that gives the farthest value the lowest code.

    Attributes:
        lowest: The lowest code.
        stored: The floats that a scale can be.
        most: The largest magnitude of the unit of an ordinary block.
    """

    lowest: np.float32
    stored: Floats
    most: np.float32


class Spanning(NamedTuple):
    """A float and a zero point for each block.

    Attributes:
        largest: The element's largest code.
        stored: The floats that a scale can be.
        most: The largest unit of an ordinary block.
        spans: Whether a scale too coarse gives way to the next below it.
    """

    largest: np.float32
    stored: Floats
    most: np.float32
    spans: bool


class Nested(NamedTuple):
    """An e4m3 for each block under a float32.

    Attributes:
        largest: The element's largest magnitude.
        stored: The floats that a block's scale can be.
        most: The largest unit of an ordinary block.
        above: The scale above: of all blocks, or of each row.
    """

    largest: np.float32
    stored: Floats
    most: np.float32
    above: NDArray[np.float32]


Scaling = Given | Shared | Symmetric | Signed | Spanning | Nested


class Numbers(NamedTuple):
    """All that the loops are told of a format.

    Attributes:
        element: How values are rounded.
        scale: How the units of blocks are chosen.
    """

    element: Rounding
    scale: Scaling


@lru_cache(maxsize=1024)
def float_scale_numbers(
    element: Element, scale: FloatScale, dtype: torch.dtype
) -> Symmetric | Signed | Spanning:
    """The numbers of a float scale for results of a dtype."""
    stored = float_numbers(NAMED_FLOATS[scale.dtype])
    largest, most = np.float32(element.largest), most_unit(element, dtype)
    if scale.zero_point:
        return Spanning(largest, stored, most, element.width <= SCALE_DIGITS[scale.dtype])
    if reaches_lower(element):
        return Signed(np.float32(-reach(element)), stored, most)
    return Symmetric(largest, stored, most)


def nested_numbers(element: Element, above: NDArray[np.float32], dtype: torch.dtype) -> Nested:
    """The numbers of a nested scale for results of a dtype."""
    stored = float_numbers(BLOCK_SCALE)
    return Nested(np.float32(element.largest), stored, most_unit(element, dtype), above)


def most_unit(element: Element, dtype: torch.dtype) -> np.float32:
    """The largest unit of which the dtype holds every multiple that the element has."""
    limit, farthest = torch.finfo(dtype).max, reach(element)
    unit = np.float32(limit / farthest)
    return np.nextafter(unit, np.float32(0.0)) if float(unit) * farthest > limit else unit


@lru_cache(maxsize=1024)
def shared_numbers(element: ExponentElement, scale: SharedExponent, dtype: torch.dtype) -> Shared:
    """The numbers of a shared exponent for results of a dtype."""
    own, top = exponent_offset(element, scale), element.max_exponent
    lowest = max(scale.lowest + own, top + LOWEST_UNIT)
    highest = min(scale.highest + own, FLOAT32.bias)
    carry = 0
    if scale.rule == "ceil":
        carry = (1 << FLOAT32.mantissa) - 1
    elif isinstance(element, LogElement):
        carry = (1 << FLOAT32.mantissa - 1) - 1
    most = FLOAT32.power(int(math.log2(HIGHEST_SAFE)))
    # The binade from which on the dtype does not hold the element's largest value.
    beyond = math.frexp(torch.finfo(dtype).max / element.largest)[1] + top
    if beyond <= highest:
        most = min(most, FLOAT32.power(beyond) - 1 - carry)
    zeros_matter = isinstance(element, LogElement) and not element.zero
    return Shared(
        carry=np.int32(carry),
        lowest=np.int32(FLOAT32.power(lowest)),
        highest=np.int32(FLOAT32.power(highest)),
        down=np.int32(top << FLOAT32.mantissa),
        zero=np.int32(-1 if zeros_matter else 0),
        least=np.int32(FLOAT32.power(top + LOWEST_UNIT)),
        most=np.int32(most),
    )
