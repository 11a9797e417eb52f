"""Values rounded to the nearest that an element has, ties to the even code.

Everything here works in units of the element: the scale is already divided out. float32 and
float64 run the same code and agree wherever float32 holds the operands.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mpq.formats.element import (
    Element,
    FloatElement,
    IntegerElement,
    LogElement,
    TableElement,
    reach,
)
from mpq.kernels.bits import FloatBits, bits_of

FEW = 1 << 12
"""Up to so many values it is faster to search a table for each; beyond, to count the thresholds
that values reach, a pass for each threshold, takes a fifth of the time."""


def round_to_element(
    scaled: Tensor, element: Element, zero_point: Tensor | None = None, largest: float = 0.0
) -> Tensor:
    """The nearest values of the element. `scaled` is used as scratch: hand over your own copy.

    Args:
        scaled: Values in units of the element, float32 or float64.
        element: What to round to. Out of range saturates.
        zero_point: Of an asymmetric integer, whole numbers that broadcast to `scaled`.
        largest: A bound below the element's own largest value, itself a value of it; 0: none.

    Returns:
        Values of the element in the dtype of `scaled`. NaN may come back as any value: whoever
        scales it back makes it NaN again.
    """
    bound = largest or min(element.largest, torch.finfo(scaled.dtype).max)
    match element:
        case IntegerElement(code="asymmetric"):
            return _round_asymmetric(scaled, element, zero_point)
        case IntegerElement(code="sign-magnitude"):
            return scaled.clamp_(-bound, bound).round_()
        case IntegerElement():
            lowest = -(largest or reach(element))
            return scaled.clamp_(lowest, bound).round_().add_(0.0)  # adding 0 takes -0 away
        case TableElement():
            return _round_to_table(scaled, element, largest)
        case FloatElement(fraction=fraction) if fraction > 0:
            return _round_to_float(scaled.clamp_(-bound, bound), element)
        case FloatElement(min_exponent=lowest):
            return _round_to_power(scaled.clamp_(-bound, bound), lowest, zero=True)
    return _round_to_power(scaled.clamp_(-bound, bound), element.min_exponent, zero=element.zero)


def _round_asymmetric(
    scaled: Tensor, element: IntegerElement, zero_point: Tensor | None
) -> Tensor:
    if zero_point is None:
        raise TypeError("an asymmetric integer is rounded with its zero point")
    rounded = scaled.round()
    # Ties go to the even stored code, rounded + zero_point: where the zero point is odd, a tie
    # (twice the error is 1 or -1) goes the other way.
    error = scaled.sub_(rounded).mul_(2).trunc_()
    rounded.addcmul_(error, zero_point.remainder(2))
    return rounded.clamp_(-zero_point, element.largest - zero_point).add_(0.0)


def _round_to_float(scaled: Tensor, element: FloatElement) -> Tensor:
    layout = bits_of(scaled)
    # The step of each value's binade, 2^(exponent - fraction), and its inverse, from the bits.
    binades = scaled.view(layout.integer) & layout.infinity
    binades.clamp_(min=(element.min_exponent + layout.bias) << layout.mantissa)
    inverse = (2 * layout.bias + element.fraction << layout.mantissa) - binades
    scaled.mul_(inverse.view(layout.dtype)).round_()
    binades.sub_(element.fraction << layout.mantissa)
    return scaled.mul_(binades.view(layout.dtype))


def _round_to_power(scaled: Tensor, lowest: int, *, zero: bool) -> Tensor:
    layout = bits_of(scaled)
    bits = scaled.view(layout.integer) & layout.magnitude
    negative = scaled.view(layout.integer) - bits  # the sign's bit alone
    underflows = bits <= (lowest - 1 + layout.bias << layout.mantissa) if zero else None
    # Midpoints are 1.5 * 2^k; a tie goes up where the code of 2^k is odd.
    first_code = layout.bias + lowest - (1 if zero else 0)
    is_odd = (bits >> layout.mantissa).sub_(first_code).bitwise_and_(1)
    bits.add_(is_odd).add_((1 << layout.mantissa - 1) - 1).bitwise_and_(layout.infinity)
    bits.clamp_(min=lowest + layout.bias << layout.mantissa)
    if underflows is not None:
        bits.masked_fill_(underflows, 0)
    return bits.bitwise_or_(negative).view(layout.dtype)


def _round_to_table(scaled: Tensor, element: TableElement, largest: float) -> Tensor:
    # The index of the nearest entry is the number of thresholds that a value reaches.
    thresholds = table_thresholds(element, bits_of(scaled))
    if scaled.numel() <= FEW:
        index = torch.bucketize(scaled.contiguous(), scaled.new_tensor(thresholds), right=True)
    else:
        index = torch.zeros_like(scaled)
        reaches = torch.empty_like(scaled)
        for threshold in thresholds:
            index.add_(torch.ge(scaled, threshold, out=reaches))
    values = torch.tensor(element.values, dtype=scaled.dtype, device=scaled.device)
    rounded = values.index_select(0, index.int().flatten()).view(scaled.shape)
    return rounded.clamp_(-largest, largest) if largest else rounded


@lru_cache(maxsize=64)
def table_thresholds(element: TableElement, layout: FloatBits) -> tuple[float, ...]:
    """The least value of the dtype that rounds to each entry but the first."""
    kind = np.float64 if layout.dtype == torch.float64 else np.float32
    thresholds = []
    for index, (below, above) in enumerate(pairwise(element.values)):
        midpoint = (below + above) / 2  # exact: the entries are float32
        threshold = kind(midpoint)
        tie_goes_up = index % 2 == 1
        if float(threshold) < midpoint or (float(threshold) == midpoint and not tie_goes_up):
            threshold = np.nextafter(threshold, kind(np.inf))
        thresholds.append(float(threshold))
    return tuple(thresholds)


def fits_float32(element: Element) -> bool:
    """Whether float32 holds the element's steps and their inverses as normal numbers."""
    match element:
        case FloatElement(min_exponent=lowest, fraction=fraction, max_exponent=highest):
            return lowest - fraction >= -100 and highest <= 100
        case LogElement(min_exponent=lowest, max_exponent=highest):
            return lowest >= -100 and highest <= 100
    return True


def truncate_to_element(bounds: Tensor, element: Element, *, negative: bool = False) -> Tensor:
    """The largest magnitude of the element at or below each bound.

    Args:
        bounds: Positive, float64, in units of the element.
        element: Whose magnitudes.
        negative: Whether to look among the negative values (tables and two's complement have
            others there).
    """
    bounds = bounds.clamp(max=reach(element) if negative else element.largest)
    match element:
        case IntegerElement():
            return bounds.floor()
        case TableElement(values=values):
            side = [-value for value in reversed(values)] if negative else values
            table = bounds.new_tensor([value for value in side if value >= 0])
            return table[torch.bucketize(bounds, table, right=True) - 1]
        case FloatElement(fraction=fraction):
            digits = fraction
        case _:
            digits = 0
    step = torch.exp2(torch.frexp(bounds).exponent.double() - 1).clamp(
        min=2.0**element.min_exponent
    )
    step = step * 2.0**-digits
    return (bounds / step).floor() * step
