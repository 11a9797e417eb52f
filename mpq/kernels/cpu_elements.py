"""What compiled loops are told of an element: plain numbers, in a tuple of a kind of their own.

A loop is compiled for the kinds that it is handed, not for their numbers: one compilation serves
every width, and none holds what another kind of element needs.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpq.formats.element import (
    Element,
    FloatElement,
    IntegerElement,
    LogElement,
    TableElement,
    has_negative_zero,
    reach,
)
from mpq.kernels.bits import FLOAT32
from mpq.kernels.rounding import fits_float32, table_thresholds

TABLE_ENTRIES = 16
"""Entries of the tables that the loops take; shorter ones are filled up."""


class Integers(NamedTuple):
    """Whole numbers.

    Attributes:
        low: The least.
        high: The largest.
        zero: What is added to the value last: 0 takes -0 away, -0 keeps it.
    """

    low: np.float32
    high: np.float32
    zero: np.float32


class Asymmetric(NamedTuple):
    """Whole numbers from which a zero point is taken.

    Attributes:
        high: The largest code.
    """

    high: np.float32


class Floats(NamedTuple):
    """Floats of some digits.

    Attributes:
        high: The largest.
        shift: Bits of a float32's mantissa that are rounded off.
        normal: The lowest normalised value.
        magic: Adding and taking it away rounds to the steps below `normal`.
        least: The step below `normal`.
    """

    high: np.float32
    shift: np.int32
    normal: np.float32
    magic: np.float32
    least: np.float32


class Powers(NamedTuple):
    """Powers of two, and zero.

    Attributes:
        high: The largest.
        first: The exponent field, as float32's, that has code 0.
        lowest: The bits of the smallest magnitude.
        underflow: The bits of the largest magnitude that becomes zero; -1: none does.
    """

    high: np.float32
    first: np.int32
    lowest: np.int32
    underflow: np.int32


class Table(NamedTuple):
    """The entries of a table.

    Attributes:
        thresholds: The least values that round to each entry but the first.
        values: The entries.
    """

    thresholds: NDArray[np.float32]
    values: NDArray[np.float32]


Rounding = Integers | Asymmetric | Floats | Powers | Table


def covers_element(element: Element) -> bool:
    """Whether the loops round to it in float32 alone.

    Not: binades below float32's normal ones (log9, e8m0, dmf-e8m3), tables past 16 entries.
    """
    match element:
        case LogElement() | FloatElement(fraction=0):
            return fits_float32(element)
        case FloatElement(min_exponent=lowest):
            return lowest >= 1 - FLOAT32.bias  # below it, float32's own steps grow no finer
        case TableElement(values=values):
            return len(values) <= TABLE_ENTRIES
    return True


@lru_cache(maxsize=1024)
def rounding_numbers(element: Element, bound: float = 0.0) -> Rounding:
    """The numbers of an element; `bound` is a value of it that stands in for its largest."""
    high = np.float32(bound or min(element.largest, float(np.finfo(np.float32).max)))
    match element:
        case IntegerElement(code="asymmetric"):
            return Asymmetric(high)
        case IntegerElement():
            return Integers(np.float32(-(bound or reach(element))), high, added_zero(element))
        case TableElement():
            return _table(element)
        case FloatElement(fraction=digits) if digits > 0:
            return float_numbers(element, float(high))
    has_zero = not isinstance(element, LogElement) or element.zero
    return Powers(
        high=high,
        first=np.int32(FLOAT32.bias + element.min_exponent - (1 if has_zero else 0)),
        lowest=np.int32(FLOAT32.power(element.min_exponent)),
        underflow=np.int32(FLOAT32.power(element.min_exponent - 1) if has_zero else -1),
    )


def added_zero(element: Element) -> np.float32:
    """What a product with a unit takes last: 0 takes the sign of -0 away, -0 keeps it."""
    return np.float32(-0.0 if has_negative_zero(element) else 0.0)


def float_numbers(element: FloatElement, high: float = 0.0) -> Floats:
    """The numbers of a float with digits after its leading one."""
    least = element.min_exponent - element.fraction
    return Floats(
        high=np.float32(high or element.largest),
        shift=np.int32(FLOAT32.mantissa - element.fraction),
        normal=np.float32(2.0**element.min_exponent),
        magic=np.float32(2.0 ** (least + FLOAT32.mantissa)),
        least=np.float32(2.0**least),
    )


def _table(element: TableElement) -> Table:
    thresholds = np.full(TABLE_ENTRIES, np.inf, dtype=np.float32)
    thresholds[: len(element.values) - 1] = table_thresholds(element, FLOAT32)
    values = np.full(TABLE_ENTRIES, element.values[-1], dtype=np.float32)
    values[: len(element.values)] = element.values
    return Table(thresholds, values)
