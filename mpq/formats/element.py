"""Elements: how one value is coded, as plain facts (widths, exponents, largest values).

A magnitude code counts the representable magnitudes upwards from zero; "ties to even" means an
even magnitude code everywhere in mpq.
"""

from dataclasses import dataclass
from typing import Literal

from mpq.errors import FormatError

IntegerCode = Literal["two's complement", "symmetric", "asymmetric", "sign-magnitude"]
Specials = Literal["none", "nan", "inf and nan"]

MAX_INTEGER_WIDTH = 24
"""float32 holds every integer of up to 24 bits, so that codes survive the arithmetic."""

LOWEST_EXPONENT = -149
"""The smallest power of two that float32 holds."""


def _require_range(what: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise FormatError(
            f"{what} must be a whole number from {lowest} to {highest}, not {value}: "
            f"choose one in that range"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerElement:
    """A whole number.

    Attributes:
        width: Bits of a code, sign included.
        code: `two's complement` reaches -2^(w-1) to 2^(w-1)-1; `symmetric` leaves the lowest
            code out; `sign-magnitude` has the symmetric range and a -0; `asymmetric` is an
            unsigned code from which a zero point is taken.
    """

    width: int
    code: IntegerCode = "symmetric"

    def __post_init__(self) -> None:
        _require_range("the width of an integer element", self.width, 2, MAX_INTEGER_WIDTH)

    @property
    def largest(self) -> float:
        """The largest value that a code stands for, before any scale."""
        bits = self.width if self.code == "asymmetric" else self.width - 1
        return float(2**bits - 1)

    @property
    def max_exponent(self) -> int:
        """The exponent of the largest power of two among the values."""
        return self.width - 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatElement:
    """A floating-point number: sign, exponent field, mantissa field.

    Attributes:
        exponent: Bits of the exponent field.
        mantissa: Bits of the mantissa field.
        specials: Codes that stand for no number: `none`, `nan` (OCP e4m3: all ones), or
            `inf and nan` (IEEE 754: the top exponent).
        implicit_one: False for a denormalised minifloat, whose mantissa field holds every digit.
        bias: What is subtracted from the exponent field; None is 2^(exponent-1) - 1.
    """

    exponent: int
    mantissa: int
    specials: Specials = "none"
    implicit_one: bool = True
    bias: int | None = None

    def __post_init__(self) -> None:
        _require_range("the exponent width of a float element", self.exponent, 1, 8)
        fewest = 0 if self.implicit_one else 1
        _require_range("the mantissa width of a float element", self.mantissa, fewest, 23)
        if self.bias == self.default_bias:
            object.__setattr__(self, "bias", None)
        if self.specials == "nan" and self.mantissa == 0:
            raise FormatError("a NaN code needs a mantissa of at least 1 bit, not 0")
        smallest = self.min_exponent - self.fraction
        if smallest < LOWEST_EXPONENT or self.max_exponent > 128:
            raise FormatError(
                f"an exponent of {self.exponent} bits with bias {self.exponent_bias} and a "
                f"mantissa of {self.mantissa} bits spans 2^{smallest} to 2^{self.max_exponent}, "
                f"beyond float32 (2^{LOWEST_EXPONENT} to 2^128): choose another bias or width"
            )

    @property
    def width(self) -> int:
        """Bits of a code, sign included."""
        return 1 + self.exponent + self.mantissa

    @property
    def default_bias(self) -> int:
        """The bias of IEEE 754 for this exponent width: 2^(exponent-1) - 1."""
        return int(2 ** (self.exponent - 1)) - 1

    @property
    def exponent_bias(self) -> int:
        """The bias in force."""
        return self.default_bias if self.bias is None else self.bias

    @property
    def fraction(self) -> int:
        """Digits after the leading one of a normalised value."""
        return self.mantissa if self.implicit_one else self.mantissa - 1

    @property
    def min_exponent(self) -> int:
        """The exponent of the lowest normalised binade; steps below it are as wide as in it."""
        return (1 if self.implicit_one else -1) - self.exponent_bias

    @property
    def max_exponent(self) -> int:
        """The exponent of the largest power of two among the values."""
        top = int(2**self.exponent) - 1 - self.exponent_bias
        if not self.implicit_one:
            return top - 1
        return top - 1 if self.specials == "inf and nan" else top

    @property
    def largest(self) -> float:
        """The largest finite value that a code stands for, before any scale."""
        steps = 2 ** (self.fraction + 1) - (2 if self.specials == "nan" else 1)
        return float(steps * 2.0 ** (self.max_exponent - self.fraction))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogElement:
    """A sign and a power of two.

    Attributes:
        width: Bits of a code, sign included.
        zero: Whether the lowest code stands for zero (without it, zero becomes the smallest
            power of two).
        bias: What is subtracted from the exponent field; None is 2^(width-2) - 1.
    """

    width: int
    zero: bool = True
    bias: int | None = None

    def __post_init__(self) -> None:
        _require_range("the width of a log element", self.width, 2, 9)
        if self.bias == self.default_bias:
            object.__setattr__(self, "bias", None)
        if self.min_exponent < LOWEST_EXPONENT or self.max_exponent > 128:
            raise FormatError(
                f"a log element of {self.width} bits with bias {self.exponent_bias} spans "
                f"2^{self.min_exponent} to 2^{self.max_exponent}, beyond float32 "
                f"(2^{LOWEST_EXPONENT} to 2^128): choose another bias or width"
            )

    @property
    def default_bias(self) -> int:
        """The bias that centres the exponents: 2^(width-2) - 1."""
        return int(2 ** (self.width - 2)) - 1

    @property
    def exponent_bias(self) -> int:
        """The bias in force."""
        return self.default_bias if self.bias is None else self.bias

    @property
    def min_exponent(self) -> int:
        """The exponent of the smallest magnitude other than zero."""
        return (1 if self.zero else 0) - self.exponent_bias

    @property
    def max_exponent(self) -> int:
        """The exponent of the largest magnitude."""
        return int(2 ** (self.width - 1)) - 1 - self.exponent_bias

    @property
    def largest(self) -> float:
        """The largest value that a code stands for, before any scale."""
        return float(2.0**self.max_exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableElement:
    """An index into a rising table of values.

    Attributes:
        name: What the table is called in text forms.
        values: The values in rising order, each a float32; one of them is 0. Largest 1.
    """

    name: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if list(self.values) != sorted(set(self.values)) or 0.0 not in self.values:
            raise FormatError(
                f"the table {self.name!r} must rise strictly and hold 0 (zero stays zero), "
                f"not {self.values}: sort it, and add 0"
            )

    @property
    def width(self) -> int:
        """Bits of an index."""
        return (len(self.values) - 1).bit_length()

    @property
    def largest(self) -> float:
        """The largest magnitude in the table."""
        return max(abs(self.values[0]), abs(self.values[-1]))


Element = IntegerElement | FloatElement | LogElement | TableElement


ExponentElement = IntegerElement | FloatElement | LogElement
"""Elements that can stand under a shared exponent."""


def reaches_lower(element: Element) -> bool:
    """Whether the lowest code lies a step further from zero than the highest."""
    return isinstance(element, IntegerElement) and element.code == "two's complement"


def reach(element: Element) -> float:
    """The largest magnitude that a code stands for, of either sign, before any scale."""
    return element.largest + 1.0 if reaches_lower(element) else element.largest


def has_negative_zero(element: Element) -> bool:
    """Whether the codes have a sign of their own, so that -0 survives."""
    if isinstance(element, IntegerElement):
        return element.code == "sign-magnitude"
    return not isinstance(element, TableElement)
