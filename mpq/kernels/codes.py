"""An element's values as the unsigned codes that are stored, and back, exactly."""

import torch
from torch import Tensor

from mpq.formats.element import Element, FloatElement, IntegerElement, TableElement
from mpq.kernels.bits import FLOAT64, powers_of_two


def codes_of(values: Tensor, element: Element, zero_point: Tensor | None = None) -> Tensor:
    """The stored code of each value, int64 from 0 to 2^width - 1.

    Args:
        values: Values that the element has (what `round_to_element` returns).
        element: How they are coded.
        zero_point: Of an asymmetric integer, whole numbers that broadcast to `values`.
    """
    values = values.double()
    match element:
        case IntegerElement(code="asymmetric"):
            return (values + _given(zero_point)).long()
        case IntegerElement(code="sign-magnitude", width=width):
            return values.abs().long() | _sign_bits(values, width)
        case IntegerElement(width=width):
            return values.long() & (1 << width) - 1
        case TableElement():
            return torch.bucketize(values, values.new_tensor(element.values))
        case FloatElement(width=width):
            return _float_codes(values.abs(), element) | _sign_bits(values, width)
    exponents = torch.frexp(values).exponent.long() - 1
    codes = torch.where(values == 0, 0, exponents + element.exponent_bias)
    return codes | _sign_bits(values, element.width)


def values_of(codes: Tensor, element: Element, zero_point: Tensor | None = None) -> Tensor:
    """The values, float64, that codes stand for: the inverse of `codes_of`."""
    match element:
        case IntegerElement(code="asymmetric"):
            return codes.double() - _given(zero_point).double()
        case IntegerElement(code="sign-magnitude", width=width):
            return _signed((codes & (1 << width - 1) - 1).double(), codes, width)
        case IntegerElement(width=width):
            return (codes - ((codes >> width - 1) << width)).double()
        case TableElement():
            return torch.tensor(element.values, dtype=torch.float64, device=codes.device)[codes]
        case FloatElement(width=width):
            return _signed(_float_values(codes, element), codes, width)
    fields = codes & (1 << element.width - 1) - 1
    magnitudes = powers_of_two(fields - element.exponent_bias, FLOAT64)
    if element.zero:
        magnitudes = magnitudes.masked_fill(fields == 0, 0.0)
    return _signed(magnitudes, codes, element.width)


def _given(zero_point: Tensor | None) -> Tensor:
    if zero_point is None:
        raise TypeError("an asymmetric integer is coded with its zero point")
    return zero_point


def _sign_bits(values: Tensor, width: int) -> Tensor:
    return torch.signbit(values).long() << width - 1


def _signed(magnitudes: Tensor, codes: Tensor, width: int) -> Tensor:
    return torch.where(codes >> width - 1 & 1 == 1, -magnitudes, magnitudes)


def _float_codes(magnitudes: Tensor, element: FloatElement) -> Tensor:
    # Exponents counted from the lowest normalised binade as 1; below it digits alone.
    exponents = (torch.frexp(magnitudes).exponent.long() - 1).clamp_(min=element.min_exponent)
    exponents.masked_fill_(magnitudes == 0, element.min_exponent)
    steps = powers_of_two(element.fraction - exponents, FLOAT64)
    digits = (magnitudes * steps).long()  # with the leading one of normalised values
    binades = exponents - element.min_exponent
    if element.implicit_one:
        return (binades << element.mantissa) + digits
    return binades << element.mantissa | digits


def _float_values(codes: Tensor, element: FloatElement) -> Tensor:
    fields = codes >> element.mantissa & (1 << element.exponent) - 1
    digits = codes & (1 << element.mantissa) - 1
    binades = fields
    if element.implicit_one:
        digits = digits + (fields.clamp(max=1) << element.mantissa)
        binades = (fields - 1).clamp_(min=0)
    steps = powers_of_two(binades + (element.min_exponent - element.fraction), FLOAT64)
    return digits.double() * steps
