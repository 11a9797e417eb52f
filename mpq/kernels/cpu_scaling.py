"""Compiled loops that choose the units of a tile's blocks, as `mpq.kernels.scaling` does.

Each says whether all blocks are ordinary (`mpq.kernels.cpu_scales`); if not, units mean nothing.
"""

from typing import Any

import numpy as np
from numpy import float32, float64, int32

from mpq.kernels.cpu_blocks import find_extremes, find_peaks, spread, unordered
from mpq.kernels.cpu_compiler import bits_of, by_kind, compiled, float_of
from mpq.kernels.cpu_rounding import (
    INFINITY,
    clamped,
    in_units,
    round_asymmetric,
    round_to_float,
)
from mpq.kernels.cpu_scales import Given, Nested, Shared, Signed, Spanning, Symmetric
from mpq.kernels.cpu_tiles import Across, Along, Place, Room, Tile


def choose_units(room: Room, place: Place, tile: Tile, s: Any) -> bool:
    """Whether all blocks of the tile are ordinary; then `room` has the unit of each value."""
    raise NotImplementedError("only compiled code calls this")


def _give_unit(room: Room, place: Place, tile: Tile, s: Given) -> bool:
    find_peaks(room, place, tile)
    for i in range(tile.filled):
        room.units[i] = s.unit
        room.extra[i] = s.zero_point
    is_ordinary = True
    for i in range(tile.blocks):
        is_ordinary = is_ordinary and room.highs[i] < INFINITY
    return is_ordinary


def _share_exponents(room: Room, place: Place, tile: Tile, s: Shared) -> bool:
    find_peaks(room, place, tile)
    faults = 0
    for i in range(tile.blocks):
        peak = room.highs[i]
        binade = int32(int32(peak + s.carry) & INFINITY)
        binade = min(max(binade, s.lowest), s.highest)
        room.unit[i] = float_of(int32(binade - s.down))
        is_ordinary = peak == s.zero or (peak >= s.least and peak <= s.most)
        faults += 0 if is_ordinary else 1
    spread(room.unit, place, tile, room.units)
    return faults == 0


def _store_scales(room: Room, place: Place, tile: Tile, s: Symmetric) -> bool:
    find_peaks(room, place, tile)
    faults = 0
    for i in range(tile.blocks):
        peak = room.highs[i]
        unit = round_to_float(float32(float_of(peak) / s.largest), s.stored)
        room.unit[i] = unit
        faults += 0 if peak < INFINITY and unit <= s.most else 1
    spread(room.unit, place, tile, room.units)
    return faults == 0


def _sign_scales(room: Room, place: Place, tile: Tile, s: Signed) -> bool:
    find_extremes(room, place, tile)
    faults = 0
    for i in range(tile.blocks):
        low, high = float_of(unordered(room.lows[i])), float_of(room.highs[i])
        farthest = high if high > -low else low
        # A scale of zeros, and one that underflows, is 0 and not -0.
        unit = float32(round_to_float(float32(farthest / s.lowest), s.stored) + float32(0.0))
        room.unit[i] = unit
        is_finite = room.highs[i] < INFINITY and room.lows[i] > ~INFINITY
        faults += 0 if is_finite and abs(unit) <= s.most else 1
    spread(room.unit, place, tile, room.units)
    return faults == 0


def row_of(place: Place, tile: Tile, block: int) -> int:
    """The row of the tensor in which a block lies."""
    raise NotImplementedError("only compiled code calls this")


by_kind(
    row_of,
    0,
    {
        Along: lambda place, tile, block: (tile.start + block * tile.height) // place.row,
        Across: lambda place, tile, block: tile.row + block,  # noqa: ARG005
    },
)


@compiled
def nested_unit(peak: int32, above: float32, s: Nested) -> float32:
    """The unit of a block with this peak, given as bits, under the scale above it."""
    wanted = in_units(float32(float_of(peak) / s.largest), above)
    return float32(round_to_float(wanted, s.stored) * above)


def _nest_scales(room: Room, place: Place, tile: Tile, s: Nested) -> bool:
    find_peaks(room, place, tile)
    if s.above.size == 1:
        # A loop of its own: with a scale to look up for each block it is not vectorised.
        above = s.above[0]
        for i in range(tile.blocks):
            room.unit[i] = nested_unit(room.highs[i], above, s)
    else:
        for i in range(tile.blocks):
            room.unit[i] = nested_unit(room.highs[i], s.above[row_of(place, tile, i)], s)
    faults = 0
    for i in range(tile.blocks):
        faults += 0 if room.highs[i] < INFINITY and room.unit[i] <= s.most else 1
    spread(room.unit, place, tile, room.units)
    return faults == 0


@compiled
def zero_point_of(low: float32, unit: float32, highest: float32) -> float32:
    """The whole number nearest to -low/unit among the codes."""
    return clamped(np.rint(in_units(-low, unit)), float32(0.0), highest)


def _span_blocks(room: Room, place: Place, tile: Tile, s: Spanning) -> bool:
    find_extremes(room, place, tile)
    faults = 0
    for i in range(tile.blocks):
        low = float_of(unordered(room.lows[i]))
        high = float_of(room.highs[i])
        wanted = float32((float64(high) - float64(low)) / float64(s.largest))
        unit = round_to_float(wanted, s.stored)
        zero_point = zero_point_of(low, unit, s.largest)
        last = round_asymmetric(in_units(high, unit), zero_point, s.largest) + zero_point
        if s.spans and last < s.largest and unit > s.stored.least:
            steps = float_of(int32(bits_of(unit) - int32(int32(1) << s.stored.shift)))
            unit = float32(unit - s.stored.least) if unit <= s.stored.normal else steps
            zero_point = zero_point_of(low, unit, s.largest)
        room.unit[i], room.zero[i] = unit, zero_point
        is_finite = room.highs[i] < INFINITY and room.lows[i] > ~INFINITY
        faults += 0 if is_finite and unit <= s.most else 1
    spread(room.unit, place, tile, room.units)
    spread(room.zero, place, tile, room.extra)
    return faults == 0


by_kind(
    choose_units,
    3,
    {
        Given: _give_unit,
        Shared: _share_exponents,
        Symmetric: _store_scales,
        Signed: _sign_scales,
        Spanning: _span_blocks,
        Nested: _nest_scales,
    },
)
