"""Fake quantisation on CPUs in compiled loops: each value is read once and written once.

The tensor is cut into tiles of whole blocks; a tile passes through its stages in the cache, and
shares of the tiles go to as many threads as torch uses. Blocks along an axis that is not the last
are tiles of neighbouring lanes, so nothing is transposed. The bits are those of
`mpq.kernels.eager`.
"""

import math
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpq.formats.block import ROW, TENSOR, WHOLE, Block, positive_axis
from mpq.formats.format import Format
from mpq.formats.scale import FloatScale, NestedScale, StaticScale
from mpq.kernels.bits import largest_held
from mpq.kernels.cpu_numbers import (
    Given,
    Place,
    covers_format,
    numbers_of,
    rounding_numbers,
)
from mpq.kernels.eager import bound_in
from mpq.kernels.rounding import truncate_to_element
from mpq.kernels.scaling import choose_scales, divisor, scale_above

TILE = 1 << 12
"""Values of a tile along memory: 16 KiB of float32, so that its stages work in the L1 cache."""

LANES = (32, 512)
"""The fewest and the most lanes of a tile across memory: runs that are worth their cache lines."""

LARGEST_BLOCK = 1 << 20
"""Values of the largest block with a scale of its own that is taken: no cache holds a larger."""

SHARE = 1 << 17
"""The fewest values for which a further thread is started."""

STORED = {torch.float32: np.float32, torch.bfloat16: np.uint16, torch.float16: np.int16}
"""How the loops see a dtype: its values, or the bits of its values."""


def covers(format: Format, x: Tensor, axis: int) -> bool:
    """Whether this path takes the tensor in the format; what it does not is eager's.

    Not: float64, what `covers_format` leaves out, and blocks too large for any cache.
    """
    if x.dtype not in STORED or not covers_format(format):
        return False
    if format.block is None or format.block == TENSOR:
        return True
    length = x.shape[positive_axis(tuple(x.shape), axis)] if x.dim() else 1
    return length <= LARGEST_BLOCK or 0 < format.block.columns <= LARGEST_BLOCK


def fake_quantize(x: Tensor, format: Format, axis: int) -> Tensor:
    """The values of `x` in the format, in its shape and dtype. `x` is not empty and covered."""
    x = x.detach()
    # What is not contiguous is copied once, and that copy written over: no more memory than `out`.
    source = x.contiguous()
    out = torch.empty_like(source) if source.data_ptr() == x.data_ptr() else source
    if format.block is None or format.block == TENSOR:
        _quantize_values(source, out, format)
    else:
        _quantize_blocks(source, out, format, axis)
    return out


def _quantize_blocks(x: Tensor, out: Tensor, format: Format, axis: int) -> None:
    from mpq.kernels.cpu_loops import quantize_tiles

    shape = tuple(x.shape)
    place = place_of(shape, axis, format.block or ROW)
    above = np.zeros(1, dtype=np.float32)
    if isinstance(format.scale, NestedScale):
        above = _scales_above(x, format.scale, axis)
    numbers = numbers_of(format, x.dtype)
    _share(
        quantize_tiles, place, x.numel(), (_loops_see(x), _loops_see(out), place, numbers, above)
    )


def _quantize_values(x: Tensor, out: Tensor, format: Format) -> None:
    from mpq.kernels.cpu_loops import quantize_values

    place = place_of((x.numel(),), 0, Block(columns=TILE))
    if format.block is None:
        fraction = format.scale.fraction if isinstance(format.scale, StaticScale) else 0
        rounding = rounding_numbers(format.element, bound_in(x.dtype, format.element, fraction))
        given = alone(fraction)
    else:
        rounding = rounding_numbers(format.element)
        given = _given(x, format)
    _share(
        quantize_values, place, x.numel(), (_loops_see(x), _loops_see(out), place, rounding, given)
    )


@lru_cache(maxsize=256)
def alone(fraction: int) -> Given:
    """The unit of values that share nothing but a static power of two."""
    unit, infinity = np.float32(2.0**-fraction), np.float32(np.inf)
    return Given(
        unit=unit,
        divisor=unit,
        zero_point=np.float32(0.0),
        low=-infinity,
        high=infinity,
        keeps_faults=True,
    )


def _given(x: Tensor, format: Format) -> Given:
    """The unit of a tensor-wide float scale: what eager chooses for a block of the extremes."""
    scale = format.scale
    is_calibrated = isinstance(scale, FloatScale) and scale.absmax is not None
    extremes = torch.zeros(1, 1) if is_calibrated else _extremes(x)
    scales = choose_scales(extremes, format, x.dtype)
    limits = (largest_held(x.dtype) / scales.unit.double()).nan_to_num_(nan=math.inf)
    high = truncate_to_element(limits, format.element)
    low = -truncate_to_element(limits, format.element, negative=True)
    zero_point = 0.0 if scales.zero_point is None else float(scales.zero_point)
    return Given(
        unit=np.float32(float(scales.unit)),
        divisor=np.float32(float(divisor(scales.unit))),
        zero_point=np.float32(zero_point),
        low=np.float32(float(low)),
        high=np.float32(float(high)),
        keeps_faults=is_calibrated,
    )


def _extremes(x: Tensor) -> Tensor:
    """The least and the largest value of the tensor, and 0: [1, 2]; NaN where one is there."""
    place = place_of((x.numel(),), 0, Block(columns=TILE))
    lows, highs = _find_extremes(x, place, place.tiles * place.blocks, is_finite=False)
    return torch.from_numpy(np.stack([lows.min(), highs.max()])[None])


def _scales_above(x: Tensor, scale: NestedScale, axis: int) -> NDArray[np.float32]:
    """The float32 above the block scales: one, or one for each row along the axis."""
    peaks = torch.zeros(1, 1)
    if scale.absmax is None:
        shape = tuple(x.shape)
        length = shape[positive_axis(shape, axis)] if shape else 1
        place, rows = place_of(shape, axis, ROW), x.numel() // length
        if not scale.per_row:
            place = place_of((x.numel(),), 0, Block(columns=TILE))
            rows = place.tiles * place.blocks
        lows, highs = _find_extremes(x, place, rows, is_finite=True)
        peaks = torch.from_numpy(np.maximum(-lows, highs))[:, None]
        peaks = peaks if scale.per_row else peaks.amax(dim=0, keepdim=True)
    above: NDArray[np.float32] = scale_above(peaks, scale).flatten().numpy()
    return above


def _find_extremes(
    x: Tensor, place: Place, count: int, *, is_finite: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    from mpq.kernels.cpu_loops import find_extremes

    lows, highs = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int32)
    _share(find_extremes, place, x.numel(), (_loops_see(x), place, lows, highs, is_finite))
    # Whole numbers in the order of the floats: the bits, those of a negative's magnitude inverted.
    lows = np.where(lows < 0, lows ^ 0x7FFFFFFF, lows).astype(np.int32)
    return lows.view(np.float32), highs.view(np.float32)


@lru_cache(maxsize=4096)
def place_of(shape: tuple[int, ...], axis: int, block: Block) -> Place:
    """Where the blocks of a contiguous tensor lie, and the tiles that hold them."""
    at = positive_axis(shape, axis)
    length = shape[at] if shape else 1
    outer, inner = math.prod(shape[:at]), math.prod(shape[at + 1 :])
    size = length if block.columns == WHOLE else block.columns
    if inner > 1:
        size = min(size, length)
        lanes = min(max(TILE // size, LANES[0]), LANES[1], inner)
        tiles = outer * math.ceil(length / size) * math.ceil(inner / lanes)
        return Place(True, length, inner, size, lanes, length, tiles, size * lanes)
    row = length
    if length % size == 0:
        # No block is short: rows follow each other as if they were one.
        outer, length = 1, outer * length
    blocks = max(1, min(TILE // size, math.ceil(length / size)))
    tiles = outer * math.ceil(length / (blocks * size))
    return Place(False, length, 1, size, blocks, row, tiles, blocks * size)


def _loops_see(x: Tensor) -> NDArray[Any]:
    flat = x.view(-1)
    if x.dtype != torch.float32:
        flat = flat.view(torch.int16)
    return flat.numpy().view(STORED[x.dtype])


def _share(
    loop: Callable[..., None], place: Place, values: int, arguments: tuple[Any, ...]
) -> None:
    """Runs a loop over all tiles, a share of them in each thread that torch would use."""
    shares = max(1, min(torch.get_num_threads(), place.tiles, values // SHARE))
    if shares == 1:
        loop(*arguments, 0, place.tiles)
        return
    bounds = [place.tiles * share // shares for share in range(shares + 1)]
    others = [
        threading.Thread(target=loop, args=(*arguments, bounds[share], bounds[share + 1]))
        for share in range(1, shares)
    ]
    for thread in others:
        thread.start()
    loop(*arguments, 0, bounds[1])
    for thread in others:
        thread.join()
