"""A format: element, scale and block as one frozen value."""

import math
from dataclasses import dataclass

from mpq.errors import FormatError
from mpq.formats.block import ROW, TENSOR, WHOLE, Block, positive_axis
from mpq.formats.element import (
    Element,
    FloatElement,
    IntegerElement,
    LogElement,
    Specials,
    TableElement,
    reaches_lower,
)
from mpq.formats.scale import (
    SCALE_DTYPES,
    TENSOR_SCALE_BITS,
    FloatScale,
    NestedScale,
    Scale,
    SharedExponent,
    StaticScale,
)

NAMED_FLOATS = {
    "fp8-e4m3": FloatElement(exponent=4, mantissa=3, specials="nan"),
    "fp8-e5m2": FloatElement(exponent=5, mantissa=2, specials="inf and nan"),
    "fp16": FloatElement(exponent=5, mantissa=10, specials="inf and nan"),
    "bf16": FloatElement(exponent=8, mantissa=7, specials="inf and nan"),
    "fp32": FloatElement(exponent=8, mantissa=23, specials="inf and nan"),
}
"""Floats with codes for infinities or NaN. Source: OCP 8-bit Floating Point v1.0, IEEE 754."""

MX_SPECIALS: dict[tuple[int, int], Specials] = {(4, 3): "nan", (5, 2): "inf and nan"}
"""Specials of MX elements by (exponent, mantissa), of others none. Source: OCP MX v1.0 §5.3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a tensor's values are coded, what they share, and which of them share it.

    Attributes:
        element: How one value is coded.
        scale: What the values of a block share; None for elements that stand alone.
        block: Which values share; None where nothing is shared that is stored per block.

    Raises:
        FormatError: The three do not go together.
    """

    element: Element
    scale: Scale | None = None
    block: Block | None = None

    def __post_init__(self) -> None:
        fault = _misfit(self.element, self.scale, self.block)
        if fault:
            raise FormatError(
                f"{fault}; not {self.element} with {self.scale} and {self.block}: use a text "
                f"form of mpq.formats.zoo"
            )

    def __str__(self) -> str:
        """The canonical text: `parse_format(str(format)) == format`."""
        from mpq.formats.zoo import format_text

        return format_text(self)

    @property
    def is_identity(self) -> bool:
        """True where a float32 tensor keeps every value."""
        return self.element == NAMED_FLOATS["fp32"] and self.scale is None

    @property
    def has_signed_scale(self) -> bool:
        """True where a block's scale may lie below 0, to use a code that reaches further there."""
        match self.element, self.scale:
            case IntegerElement(code="two's complement"), FloatScale(absmax=None):
                return True
        return False

    @property
    def has_tensor_scale(self) -> bool:
        """True where one scale, read off the data, is shared by the whole tensor."""
        if isinstance(self.scale, NestedScale):
            return not self.scale.per_row and self.scale.absmax is None
        return self.block == TENSOR and getattr(self.scale, "absmax", None) is None

    @property
    def has_2d_block(self) -> bool:
        """True where a block reaches over several rows (but not the whole tensor)."""
        return self.block is not None and self.block.rows > 1

    @property
    def block_bits(self) -> int:
        """Bits stored for each block beside its codes: scale, shared exponent, zero point."""
        match self.scale:
            case SharedExponent(width=width):
                return width
            case NestedScale():
                return 8
            case FloatScale(absmax=None, dtype=dtype, zero_point=zero_point):
                return SCALE_DTYPES[dtype] + (self.element.width if zero_point else 0)
        return 0

    def bits(self, shape: tuple[int, ...], axis: int = -1) -> int:
        """The bits that a tensor of this shape takes: codes, scales, zero points, unpadded.

        A number that the format's own text holds (a fixed point's fraction, a calibrated
        absmax, a table) is part of the plan, once, and counts nothing here.

        Args:
            shape: The tensor's shape.
            axis: The axis along which blocks lie.

        Raises:
            FormatError: `axis` is not an axis of `shape`.
        """
        positive_axis(shape, axis)
        total = math.prod(shape) * self.element.width
        if self.block is not None:
            total += self.block.count(shape, axis) * self.block_bits
        if isinstance(self.scale, NestedScale) and self.scale.absmax is None:
            above = ROW if self.scale.per_row else TENSOR
            total += above.count(shape, axis) * TENSOR_SCALE_BITS
        return total

    @property
    def bits_per_value(self) -> float:
        """Nominal bits a value: codes and their block's share, in full blocks.

        Scales of whole rows and of the tensor are left out: their share falls with the size.
        """
        if self.block is None or not self.block.columns:
            return float(self.element.width)
        return self.element.width + self.block_bits / (self.block.columns * self.block.rows)


def _misfit(element: Element, scale: Scale | None, block: Block | None) -> str:
    """Why the three do not go together; empty if they do."""
    if (block is None) != (scale is None or isinstance(scale, StaticScale)):
        return "a block goes with a scale that is stored for each block, and with no other"
    match scale:
        case None:
            return _lonely_misfit(element)
        case StaticScale():
            fits = reaches_lower(element)
            return "" if fits else "a static scale goes with a two's-complement integer"
        case FloatScale():
            return _float_scale_misfit(element, scale, block)
        case SharedExponent():
            return _exponent_misfit(element, scale)
    return _nested_misfit(element, block)


def _lonely_misfit(element: Element) -> str:
    if isinstance(element, IntegerElement | TableElement):
        return "integers and tables need a scale"
    has_specials = isinstance(element, FloatElement) and element.specials != "none"
    if has_specials and element not in NAMED_FLOATS.values():
        return f"only {', '.join(NAMED_FLOATS)} have codes for infinities or NaN"
    return ""


def _float_scale_misfit(element: Element, scale: FloatScale, block: Block | None) -> str:
    if scale.absmax is not None and block != TENSOR:
        return "a calibrated absmax belongs to the whole tensor"
    match element:
        case IntegerElement(code="asymmetric"):
            return "" if scale.zero_point else "an asymmetric integer needs a zero point"
        case _ if scale.zero_point:
            return "a zero point goes with an asymmetric integer"
        case IntegerElement(code="symmetric" | "two's complement") | TableElement():
            return ""
        case FloatElement(implicit_one=True, bias=None, exponent=exponent) if exponent <= 5:
            return _lonely_misfit(element)
    return (
        "a float scale goes with a symmetric, two's-complement or asymmetric integer, a table, or "
        "a float of at most 5 exponent bits, an implicit one and the default bias"
    )


def _exponent_misfit(element: Element, scale: SharedExponent) -> str:
    match element:
        case IntegerElement(code="sign-magnitude") if not scale.microscaling:
            return ""
        case IntegerElement(code="symmetric", width=8) if scale.microscaling:
            return ""
        case FloatElement(implicit_one=True, bias=None, exponent=exponent) if exponent <= 5:
            specials = MX_SPECIALS.get((exponent, element.mantissa), "none")
            wanted = specials if scale.microscaling else "none"
            return "" if element.specials == wanted else f"the element's specials are {wanted}"
        case LogElement(bias=None, zero=zero) if not scale.microscaling:
            return "" if zero or scale.rule != "mse" else "the mse rule needs a zero code"
    return (
        "a shared exponent goes with a sign-magnitude integer, an int8 under E8M0, a log with "
        "the default bias, or a float of at most 5 exponent bits, an implicit one and the "
        "default bias"
    )


def _nested_misfit(element: Element, block: Block | None) -> str:
    if element != FloatElement(exponent=2, mantissa=1):
        return "a nested scale goes with e2m1"
    if block is None or block.rows != 1 or block.columns == WHOLE:
        return "a nested scale goes with blocks of one row and some columns"
    return ""
