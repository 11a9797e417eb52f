"""Heads of text forms: what a format's element and kind of scale are called.

Each returns an empty text for a format of another family.
"""

from mpq.formats.element import FloatElement, IntegerCode, IntegerElement
from mpq.formats.format import Format
from mpq.formats.scale import FloatScale, SharedExponent, StaticScale

INTEGER_SUFFIXES: dict[IntegerCode, str] = {
    "symmetric": "",
    "asymmetric": "a",
    "two's complement": "f",
}
"""What follows `int4` by the element's code: `a` for a zero point, `f` for the full range."""


def fixed_head(named: Format) -> str:
    """`fixed8.4`, or empty for other formats."""
    if isinstance(named.scale, StaticScale):
        return f"fixed{named.element.width}.{named.scale.fraction}"
    return ""


def integer_head(named: Format) -> str:
    """`int4`, `int4a` or `int4f`, or empty for other formats."""
    if isinstance(named.scale, FloatScale) and isinstance(named.element, IntegerElement):
        return f"int{named.element.width}{INTEGER_SUFFIXES[named.element.code]}"
    return ""


def float_head(named: Format, *, implicit_one: bool = True) -> str:
    """`e4m3` for a float without special codes and without a shared exponent, or empty."""
    element = named.element
    if isinstance(element, FloatElement) and element.specials == "none":
        is_own = element.implicit_one is implicit_one
        is_alone = named.scale is None or isinstance(named.scale, FloatScale)
        return digits(element) if is_own and is_alone else ""
    return ""


def shared_float_head(named: Format, *, microscaling: bool) -> str:
    """`8-e4m3` for a float under a shared exponent, or empty."""
    element, scale = named.element, named.scale
    if isinstance(element, FloatElement) and isinstance(scale, SharedExponent):
        is_own = scale.microscaling is microscaling
        return f"{element.width}-{digits(element)}" if is_own else ""
    return ""


def shared_head(named: Format, element: type, prefix: str) -> str:
    """`bfp6` for this class of element under a shared exponent, or empty."""
    if isinstance(named.scale, SharedExponent) and isinstance(named.element, element):
        return "" if named.scale.microscaling else f"{prefix}{named.element.width}"
    return ""


def digits(element: FloatElement) -> str:
    """`e4m3` for 4 exponent and 3 mantissa bits."""
    return f"e{element.exponent}m{element.mantissa}"


def after(prefix: str, rest: str) -> str:
    """The prefix and the rest, or empty where the rest is."""
    return prefix + rest if rest else ""
