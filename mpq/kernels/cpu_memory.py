"""Compiled loops between a tensor's memory and a tile: every value is read once and written once.

Indices that are summed are unsigned, or numba would look for negative ones at every value.
"""

from typing import Any

import numpy as np
from numba import types
from numpy import float32, int32, uint64

from mpq.kernels.cpu_compiler import bits_of, by_kind, compiled, float_of
from mpq.kernels.cpu_rounding import INFINITY, MAGNITUDE, SIGN, Values, round_bits
from mpq.kernels.cpu_tiles import Across, Along, Place, Tile

HALF_INFINITY = int32(0x7C00)


@compiled
def from_half(bits: int32) -> float32:
    """The float32 of a float16's bits."""
    size = int32(int32(bits & int32(0x7FFF)) << int32(13))
    scaled = bits_of(float32(float_of(size) * float32(2.0**112)))
    is_special = int32(bits & HALF_INFINITY) == HALF_INFINITY
    held = int32(size | INFINITY) if is_special else scaled
    return float_of(int32(held | int32(bits & SIGN)))


@compiled
def to_half(value: float32) -> int32:
    """The bits of the nearest float16; the value is finite."""
    bits = bits_of(value)
    magnitude = int32(bits & MAGNITUDE)
    normal = int32(int32(round_bits(magnitude, int32(13)) - int32(112 << 23)) >> int32(13))
    small = int32(bits_of(float32(float_of(magnitude) + float32(0.5))) - int32(126 << 23))
    code = small if magnitude < int32(113 << 23) else min(normal, HALF_INFINITY)
    return int32(code | int32(int32(bits >> int32(16)) & int32(0x8000)))


@compiled
def to_bfloat16(value: float32) -> int32:
    """The bits of the nearest bfloat16; the value is finite."""
    bits = bits_of(value)
    code = int32(round_bits(int32(bits & MAGNITUDE), int32(16)) >> int32(16))
    return int32(code | int32(int32(bits >> int32(16)) & int32(0x8000)))


def widened(stored: Any) -> float32:
    """The float32 of what a tensor stores: float32, or the bits of bfloat16 or float16."""
    raise NotImplementedError("only compiled code calls this")


def narrowed(value: float32, stored: Any) -> Any:
    """A finite float32 as `stored` is stored."""
    raise NotImplementedError("only compiled code calls this")


by_kind(
    widened,
    0,
    {
        types.float32: lambda stored: stored,
        types.uint16: lambda stored: float_of(int32(int32(stored) << int32(16))),
        types.int16: lambda stored: from_half(int32(stored)),
    },
)
by_kind(
    narrowed,
    1,
    {
        types.float32: lambda value, stored: value,  # noqa: ARG005
        types.uint16: lambda value, stored: np.uint16(to_bfloat16(value)),  # noqa: ARG005
        types.int16: lambda value, stored: np.int16(to_half(value)),  # noqa: ARG005
    },
)


def load(x: Any, place: Place, tile: Tile, v: Values) -> None:
    """Fills `v` with the tile's values as float32."""
    raise NotImplementedError("only compiled code calls this")


def store(v: Values, place: Place, tile: Tile, out: Any) -> None:
    """Writes the tile's values to the tensor `out`."""
    raise NotImplementedError("only compiled code calls this")


def _load_along(x: Any, place: Along, tile: Tile, v: Values) -> None:  # noqa: ARG001
    start, there = uint64(tile.start), uint64(tile.stored)
    for i in range(there):
        v[i] = widened(x[start + i])
    for i in range(there, uint64(tile.filled)):
        v[i] = float32(0.0)


def _load_across(x: Any, place: Across, tile: Tile, v: Values) -> None:
    width = uint64(tile.stored)
    for row in range(uint64(tile.height)):
        source, target = uint64(tile.start) + row * uint64(place.inner), row * width
        for i in range(width):
            v[target + i] = widened(x[source + i])


def _store_along(v: Values, place: Along, tile: Tile, out: Any) -> None:  # noqa: ARG001
    start = uint64(tile.start)
    for i in range(uint64(tile.stored)):
        out[start + i] = narrowed(v[i], out[start + i])


def _store_across(v: Values, place: Across, tile: Tile, out: Any) -> None:
    width = uint64(tile.stored)
    for row in range(uint64(tile.height)):
        target, source = uint64(tile.start) + row * uint64(place.inner), row * width
        for i in range(width):
            out[target + i] = narrowed(v[source + i], out[target + i])


by_kind(load, 1, {Along: _load_along, Across: _load_across})
by_kind(store, 1, {Along: _store_along, Across: _store_across})
