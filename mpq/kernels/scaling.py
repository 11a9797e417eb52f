"""Scales chosen for blocks: shared exponents, stored floats, zero points, nested scales."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq.formats.element import (
    Element,
    ExponentElement,
    FloatElement,
    LogElement,
    TableElement,
    reach,
)
from mpq.formats.format import NAMED_FLOATS, Format
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent
from mpq.kernels.bits import bits_of, bits_of_integer
from mpq.kernels.rounding import fits_float32, round_to_element

BLOCK_SCALE = NAMED_FLOATS["fp8-e4m3"]
SCALE_TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SCALE_DIGITS = {"bf16": 8, "fp16": 11, "fp32": 24}
"""Significant bits of a stored scale; wider codes are finer than the scale that they multiply."""

HIGHEST_SAFE = 2.0**90
LOWEST_UNIT = -100
"""float32 computes a block with a shared exponent where its maximum is at most `HIGHEST_SAFE` and
its unit at least 2^`LOWEST_UNIT`: then it holds the unit, its inverse and their products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """What the values of each block are multiplied with.

    Attributes:
        unit: The value of an element's 1 in each block, [blocks, 1], in the dtype in which the
            block is computed; NaN for a block with a value that is not finite. Below 0 where
            the format has a signed scale and the block's largest magnitude lies above 0.
        inverse: 1 / unit where that is exact (powers of two); None: divide.
        stored: What is kept for each block, [blocks, 1]: values of e4m3 scales, float scales in
            their own dtype; None where the unit tells (a shared exponent, a calibrated scale).
        zero_point: Stored zero points as whole floats, [blocks, 1].
        may_overflow: Whether a value could leave the range of the output's dtype.
    """

    unit: Tensor
    inverse: Tensor | None = None
    stored: Tensor | None = None
    zero_point: Tensor | None = None
    may_overflow: bool = True


def choose_scales(
    blocks: Tensor, format: Format, dtype: torch.dtype, above: Tensor | None = None
) -> Scales:
    """The scales of blocks.

    Args:
        blocks: [blocks, values], float32 or float64.
        format: One with a scale that is stored for each block.
        dtype: What the result will be cast to.
        above: The scale above each block's, [blocks, 1], of a nested scale.
    """
    match format.scale:
        case SharedExponent() if not isinstance(format.element, TableElement):
            return _share_exponents(blocks, format.element, format.scale, dtype)
        case FloatScale(zero_point=True):
            return _asymmetric_scales(blocks, format.element, format.scale, dtype)
        case FloatScale():
            return _symmetric_scales(blocks, format, format.scale, dtype)
        case NestedScale() if above is not None:
            return _nested_scales(blocks, format.element, above, dtype)
    raise TypeError(f"{format} has no scale that is chosen for each block")


def largest_magnitudes(blocks: Tensor) -> Tensor:
    """The largest magnitude in each block, [blocks, 1]; NaN or inf if one is there."""
    layout = bits_of(blocks)
    magnitudes = blocks.view(layout.integer) & layout.magnitude
    # As integers: magnitudes have the same order, NaN above all, and the reduction is faster.
    return magnitudes.amax(dim=1, keepdim=True).view(layout.dtype)


def _share_exponents(
    blocks: Tensor, element: ExponentElement, scale: SharedExponent, dtype: torch.dtype
) -> Scales:
    peaks = largest_magnitudes(blocks)
    lowest, highest = _extent(peaks, element)
    lowest_safe = 2.0 ** (element.max_exponent + LOWEST_UNIT)
    is_safe = fits_float32(element) and lowest >= lowest_safe and highest <= HIGHEST_SAFE
    if blocks.dtype == torch.float32 and (not is_safe or scale.rule == "mse"):
        # Powers of two beyond float32 may be needed: the same steps in float64 are exact.
        blocks, peaks = blocks.double(), peaks.double()
    unit, inverse = _powers(_binades(peaks, element, scale), element, scale)
    if scale.rule == "mse":
        unit, inverse = _least_error(blocks, peaks, element, scale)
    if not highest < math.inf:
        _poisoned(unit, peaks)
    may_overflow = not highest <= torch.finfo(dtype).max / 8
    return Scales(unit=unit, inverse=inverse, may_overflow=may_overflow)


def _extent(peaks: Tensor, element: ExponentElement) -> tuple[float, float]:
    """The smallest block maximum whose scale matters, and the largest; NaN if one is NaN."""
    lowest, highest = (float(peak) for peak in torch.aminmax(peaks))
    zeros_need_scale = isinstance(element, LogElement) and not element.zero
    if lowest == 0.0 and not zeros_need_scale:
        # Any scale gives a block of zeros its zeros.
        lowest = float(torch.where(peaks == 0, math.inf, peaks).amin())
    return lowest, highest


def _binades(peaks: Tensor, element: ExponentElement, scale: SharedExponent) -> Tensor:
    """The bits of the power of two to which the rule takes each block's largest magnitude."""
    layout = bits_of(peaks)
    bits = peaks.view(layout.integer)
    if scale.rule == "ceil":
        bits = bits + ((1 << layout.mantissa) - 1)
    elif isinstance(element, LogElement):
        # Past 1.5 * 2^k the carry makes it k + 1; at 1.5 * 2^k itself it stays k.
        bits = bits + ((1 << layout.mantissa - 1) - 1)
    return bits & layout.infinity


def _powers(
    binades: Tensor, element: ExponentElement, scale: SharedExponent, shift: int = 0
) -> tuple[Tensor, Tensor]:
    """Each block's unit and its inverse, from the bits of its binade, which are overwritten."""
    layout = bits_of_integer(binades)
    offset = exponent_offset(element, scale)
    lowest, highest = scale.lowest + offset - shift, scale.highest + offset - shift
    if layout.dtype == torch.float32:
        # What float32 does not hold never comes here, but for blocks of zeros, which any scale
        # gives their zeros.
        lowest = max(lowest, element.max_exponent + LOWEST_UNIT)
        highest = min(highest, 127)
    binades.clamp_(layout.power(lowest), layout.power(highest))
    unit = binades - (element.max_exponent - shift << layout.mantissa)
    inverse = (2 * layout.bias << layout.mantissa) - unit
    return unit.view(layout.dtype), inverse.view(layout.dtype)


def exponent_offset(element: ExponentElement, scale: SharedExponent) -> int:
    """What the exponent of a block's largest magnitude lies above the stored one.

    E8M0 stores the exponent of the scale itself (OCP MX v1.0 §6.3), where an MXINT8 value lies
    between -2 and 2; the others store the exponent of the largest magnitude.
    """
    is_own = scale.microscaling and isinstance(element, FloatElement)
    return element.max_exponent if is_own else 0


def _least_error(
    blocks: Tensor, peaks: Tensor, element: ExponentElement, scale: SharedExponent
) -> tuple[Tensor, Tensor]:
    """Of the floor's exponent, the next below and the next above, the least squared error.

    The first of equals wins, so that a block which one of them holds exactly keeps the floor's.
    """
    unit, inverse = _powers(_binades(peaks, element, scale), element, scale)
    least = _squared_errors(blocks, unit, inverse, element)
    for shift in (-1, 1):
        other, its_inverse = _powers(_binades(peaks, element, scale), element, scale, shift)
        error = _squared_errors(blocks, other, its_inverse, element)
        wins = error < least
        least = torch.where(wins, error, least)
        unit = torch.where(wins, other, unit)
        inverse = torch.where(wins, its_inverse, inverse)
    return unit, inverse


def _squared_errors(blocks: Tensor, unit: Tensor, inverse: Tensor, element: Element) -> Tensor:
    # In float64, where squares of float32 neither underflow nor round.
    rounded = round_to_element(blocks * inverse, element)
    return _sum_in_pairs(rounded.mul_(unit).sub_(blocks).square_())


def _sum_in_pairs(blocks: Tensor) -> Tensor:
    """The sum of each block, [blocks, 1]: of neighbours, then of neighbouring sums, and so on.

    A sum rounds differently in another order, and two exponents may be all but equally good: with
    an order of its own, every path and every machine picks the same.
    """
    while blocks.shape[1] > 1:
        blocks = torch.nn.functional.pad(blocks, (0, blocks.shape[1] % 2))
        blocks = blocks[:, 0::2] + blocks[:, 1::2]
    return blocks


def _stored(wanted: Tensor, scale: FloatScale) -> Tensor:
    """Scales rounded to the dtype in which they are stored, saturating."""
    dtype = SCALE_TORCH_DTYPES[scale.dtype]
    largest = torch.finfo(dtype).max
    return wanted.float().clamp_(-largest, largest).to(dtype)


def _symmetric_scales(
    blocks: Tensor, format: Format, scale: FloatScale, dtype: torch.dtype
) -> Scales:
    element = format.element
    if scale.absmax is not None:
        unit = calibrated_unit(element, scale, blocks)
        return Scales(unit=unit, may_overflow=_may_overflow(unit, element, dtype))
    peaks = _signed_peaks(blocks) if format.has_signed_scale else largest_magnitudes(blocks)
    stored = _stored(peaks / reach(element), scale).add_(0.0)  # a scale that is 0 is not -0
    unit = _poisoned(stored.to(blocks.dtype), peaks)
    return Scales(unit=unit, stored=stored, may_overflow=_may_overflow(unit, element, dtype))


def _signed_peaks(blocks: Tensor) -> Tensor:
    """The largest magnitude in each block, below 0 if only a value above 0 has it.

    So the lowest code, -2^(w-1), goes to a value of that magnitude. Source: `Q4_0` of llama.cpp,
    whose scale is max / -8 (`quantize_row_q4_0_ref` in ggml-quants.c).
    """
    low, high = torch.aminmax(blocks, dim=1, keepdim=True)
    return torch.where(high > -low, -high, -low)


def _poisoned(unit: Tensor, peaks: Tensor) -> Tensor:
    """The units, NaN where a block's peak is not finite."""
    return unit.masked_fill_(~peaks.isfinite(), math.nan)


def calibrated_unit(element: Element, scale: FloatScale, like: Tensor) -> Tensor:
    """The unit that follows from a calibrated absmax, [1, 1], in the dtype of `like`."""
    absmax = torch.full((1, 1), scale.absmax or 0.0, dtype=torch.float32, device=like.device)
    return _stored(absmax / reach(element), scale).to(like.dtype)


def _may_overflow(unit: Tensor, element: Element, dtype: torch.dtype) -> bool:
    return not float(unit.abs().amax()) * reach(element) <= torch.finfo(dtype).max


def _asymmetric_scales(
    blocks: Tensor, element: Element, scale: FloatScale, dtype: torch.dtype
) -> Scales:
    low, high = torch.aminmax(blocks, dim=1, keepdim=True)
    low, high = low.clamp_(max=0.0), high.clamp_(min=0.0)
    # In float64, where the difference neither overflows nor rounds before the quotient does.
    stored = _stored((high.double() - low.double()) / element.largest, scale)
    if element.width <= SCALE_DIGITS[scale.dtype]:
        stored = _spanning(stored, low, high, element)
    unit = _poisoned(_poisoned(stored.to(blocks.dtype), high), low)
    return Scales(
        unit=unit,
        stored=stored,
        zero_point=_zero_point(low, divisor(unit), element),
        may_overflow=_may_overflow(unit, element, dtype),
    )


def _spanning(stored: Tensor, low: Tensor, high: Tensor, element: Element) -> Tensor:
    """Stored scales under which the lowest value takes the first code and the highest the last.

    Where the stored scale is too coarse for that, the next below it. Otherwise the result would
    span a step less than the codes do, and take another scale when it is quantised again.
    """
    unit = divisor(stored.to(low.dtype))
    zero_point = _zero_point(low, unit, element)
    last = round_to_element(high / unit, element, zero_point) + zero_point
    bits = stored.view(torch.int32 if stored.itemsize == 4 else torch.int16)
    is_short = (last < element.largest) & (bits > 1)  # there is a positive scale below
    return torch.where(is_short, (bits - 1).view(stored.dtype), stored)


def _zero_point(low: Tensor, unit: Tensor, element: Element) -> Tensor:
    return (-low / unit).round_().clamp_(0.0, element.largest)


def divisor(unit: Tensor) -> Tensor:
    """The unit to divide by: 1 where the unit underflowed to 0, so that its block becomes 0."""
    return unit.masked_fill(unit == 0, 1.0)


def scale_above(peaks: Tensor, scale: NestedScale) -> Tensor:
    """The float32 above the block scales, so that the largest block scale is e4m3's largest.

    Source: NVIDIA, "Pretraining Large Language Models with NVFP4" (2025), appendix on the NVFP4
    quantization recipe: amax / (6 * 448).

    Args:
        peaks: The largest magnitudes to cover; those that are not finite are left out.
        scale: Its absmax, where calibrated, stands in for the peaks.
    """
    exact = torch.where(peaks.isfinite(), peaks, 0.0).double()
    if scale.absmax is not None:
        exact = torch.full_like(exact, scale.absmax)
    return (exact / (6.0 * BLOCK_SCALE.largest)).clamp_(max=torch.finfo(torch.float32).max).float()


def _nested_scales(blocks: Tensor, element: Element, above: Tensor, dtype: torch.dtype) -> Scales:
    peaks = largest_magnitudes(blocks)
    wanted = peaks / element.largest / divisor(above)
    inner = round_to_element(wanted, BLOCK_SCALE)
    unit = _poisoned(inner * above, peaks)
    return Scales(unit=unit, stored=inner, may_overflow=_may_overflow(unit, element, dtype))
