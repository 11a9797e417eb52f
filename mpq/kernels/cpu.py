"""Fake quantisation on CPUs in compiled loops: each value is read once and written once.

The tensor is cut into tiles of whole blocks; a tile passes through its stages in the cache, and
shares of the tiles go to as many threads as torch uses. The loops take ordinary blocks alone (what
that is, `mpq.kernels.cpu_scales` says); eager takes the tiles that hold others. So the bits are
those of `mpq.kernels.eager`.
"""

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpq.formats.block import TENSOR, WHOLE, Block, positive_axis
from mpq.formats.element import TableElement
from mpq.formats.format import Format
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent, StaticScale
from mpq.kernels import eager
from mpq.kernels.cpu_elements import Rounding, covers_element, rounding_numbers
from mpq.kernels.cpu_scales import (
    Given,
    Numbers,
    Scaling,
    float_scale_numbers,
    most_unit,
    nested_numbers,
    shared_numbers,
)
from mpq.kernels.cpu_threads import STORED, in_shares, memory_of
from mpq.kernels.cpu_tiles import (
    LARGEST_BLOCK,
    TILE,
    Across,
    Place,
    Room,
    place_of,
    tile_across,
    tile_along,
)
from mpq.kernels.rounding import fits_float32
from mpq.kernels.scaling import choose_scales, scale_above

FEW = 8
"""Eager takes single tiles while they are fewer than one in so many; else it takes the tensor."""


def covers(format: Format, x: Tensor, axis: int) -> bool:
    """Whether this path takes the tensor in the format; what it does not is eager's.

    Not: float64, elements that `covers_element` leaves out, blocks of several rows, tensor-wide
    shared exponents, the mse rule, whose sums eager adds in an order of its own, and blocks too
    large for any cache.
    """
    block, scale = format.block, format.scale
    if x.dtype not in STORED or not covers_element(format.element):
        return False
    if isinstance(scale, SharedExponent) and (
        scale.rule == "mse" or block == TENSOR or not fits_float32(format.element)
    ):
        return False
    if block is None or block == TENSOR:
        return True
    length = x.shape[positive_axis(tuple(x.shape), axis)] if x.dim() else 1
    size = length if block.columns == WHOLE else min(block.columns, length)
    return block.rows == 1 and size <= LARGEST_BLOCK


def fake_quantize(x: Tensor, format: Format, axis: int) -> Tensor:
    """The values of `x` in the format, in its shape and dtype. `x` is not empty and covered."""
    x = x.detach()
    # What is not contiguous is copied once, and that copy written over: no more memory than `out`.
    source = x.contiguous()
    scaling = _scaling(source, format, axis)
    if scaling is None:
        del source
        return eager.fake_quantize(x, format, axis)
    out = torch.empty_like(source) if source.data_ptr() == x.data_ptr() else source
    place = _place(x, format, axis)
    left = _quantize_tiles(source, out, place, Numbers(_rounding(format, x.dtype), scaling))
    if len(left) * FEW > place.tiles or (len(left) and isinstance(format.scale, NestedScale)):
        # What lies above a nested scale's blocks belongs to the tensor, which a tile is not.
        del source, out  # eager's own output stands in their place
        return eager.fake_quantize(x, format, axis)
    for index in left:
        _leave(source, out, place, int(index), format)
    return out


def _place(x: Tensor, format: Format, axis: int) -> Place:
    if format.block is None or format.block == TENSOR:
        return place_of((x.numel(),), 0, Block(columns=min(x.numel(), TILE)))
    return place_of(tuple(x.shape), axis, format.block)


def _rounding(format: Format, dtype: torch.dtype) -> Rounding:
    if format.block is not None:
        return rounding_numbers(format.element)
    fraction = format.scale.fraction if isinstance(format.scale, StaticScale) else 0
    return rounding_numbers(format.element, eager.bound_in(dtype, format.element, fraction))


def _scaling(x: Tensor, format: Format, axis: int) -> Scaling | None:
    """The numbers of the scale; None where a tensor's one scale makes all of it eager's."""
    match format.scale:
        case SharedExponent() if not isinstance(format.element, TableElement):
            return shared_numbers(format.element, format.scale, x.dtype)
        case FloatScale():
            if format.block == TENSOR:
                return _tensor_unit(x, format, format.scale)
            return float_scale_numbers(format.element, format.scale, x.dtype)
        case NestedScale():
            above = _scales_above(x, format.scale, axis)
            return None if above is None else nested_numbers(format.element, above, x.dtype)
        case StaticScale(fraction=fraction):
            return Given(np.float32(2.0**-fraction), np.float32(0.0))
    return Given(np.float32(1.0), np.float32(0.0))


def _tensor_unit(x: Tensor, format: Format, scale: FloatScale) -> Given | None:
    """The unit that eager chooses for a block of the tensor's extremes."""
    extremes = torch.zeros(1, 2)
    if scale.absmax is None:
        extremes = torch.stack(torch.aminmax(x)).float()[None]
    scales = choose_scales(extremes, format, x.dtype)
    unit = float(scales.unit)
    if not abs(unit) <= most_unit(format.element, x.dtype):
        return None
    zero_point = 0.0 if scales.zero_point is None else float(scales.zero_point)
    return Given(np.float32(unit), np.float32(zero_point))


def _scales_above(x: Tensor, scale: NestedScale, axis: int) -> NDArray[np.float32] | None:
    """The float32 above the block scales: one, or each row's; None where one is not finite."""
    peaks = torch.zeros(1, 1)
    if scale.absmax is None and scale.per_row and x.dim():
        # Two reductions: along an axis, the one that finds both takes five times as long.
        # The magnitude, since of zeros -0 may come out, and under it signs would turn.
        peaks = torch.maximum(x.amax(axis), -x.amin(axis)).float().abs()
    elif scale.absmax is None:
        peaks = torch.stack(torch.aminmax(x)).float().abs().amax()
    if not math.isfinite(float(peaks.amax())):
        return None
    above: NDArray[np.float32] = scale_above(peaks, scale).flatten().numpy()
    return above


def _quantize_tiles(x: Tensor, out: Tensor, place: Place, numbers: Numbers) -> NDArray[np.intp]:
    """The numbers of the tiles that are left, the others written; shares of them in threads."""
    from mpq.kernels.cpu_loops import quantize_tiles

    left = np.zeros(place.tiles, dtype=np.uint8)
    tensors = (memory_of(x), memory_of(out), left, place)

    def take(reach: tuple[int, int]) -> None:
        quantize_tiles(*tensors, Room.of(place), numbers, reach)

    in_shares(place.tiles, x.numel(), take)
    return np.flatnonzero(left)


def _leave(x: Tensor, out: Tensor, place: Place, index: int, format: Format) -> None:
    """Writes a tile by eager, as a tensor of its own."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    if isinstance(place, Across):
        tile = tile_across(place, index)
        shape, strides = (tile.height, tile.blocks), (place.inner, 1)
    else:
        tile = tile_along(place, index)
        shape, strides = (tile.stored,), (1,)
    if format.block is not None and format.block != TENSOR:
        format = dataclasses.replace(format, block=Block(columns=place.size))
    part = x.view(-1)[tile.start :].as_strided(shape, strides)
    written = out.view(-1)[tile.start :].as_strided(shape, strides)
    written.copy_(eager.fake_quantize(part, format, 0))
