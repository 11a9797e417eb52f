"""Compiled loops over the blocks of a tile: what all values of one are reduced to, or share."""

from numpy import float32, int32, uint64

from mpq.kernels.cpu_compiler import bits_of, by_kind, compiled
from mpq.kernels.cpu_rounding import MAGNITUDE, Values
from mpq.kernels.cpu_tiles import Across, Along, Place, Room, Tile, tile_across, tile_along


@compiled
def ordered(value: float32) -> int32:
    """A whole number in the order of the float: below 0 for negatives, NaN outermost."""
    bits = bits_of(value)
    return int32(bits ^ int32(int32(bits >> int32(31)) & MAGNITUDE))


@compiled
def unordered(key: int32) -> int32:
    """The bits of the float of which `ordered` made a whole number."""
    return int32(key ^ int32(int32(key >> int32(31)) & MAGNITUDE))


def find_tile(place: Place, index: int) -> Tile:
    """A tile by its number."""
    raise NotImplementedError("only compiled code calls this")


def spread(of_blocks: Values, place: Place, tile: Tile, of_values: Values) -> None:
    """Gives each value what its block has."""
    raise NotImplementedError("only compiled code calls this")


def find_peaks(room: Room, place: Place, tile: Tile) -> None:
    """Fills `room.highs` with the bits of each block's largest magnitude."""
    raise NotImplementedError("only compiled code calls this")


def find_extremes(room: Room, place: Place, tile: Tile) -> None:
    """Fills `room` with the least and largest value of each block and 0, as `ordered` numbers."""
    raise NotImplementedError("only compiled code calls this")


def _spread_along(of_blocks: Values, place: Along, tile: Tile, of_values: Values) -> None:  # noqa: ARG001
    height = uint64(tile.height)
    for block in range(uint64(tile.blocks)):
        start, one = block * height, of_blocks[block]
        for i in range(start, start + height):
            of_values[i] = one


def _spread_across(of_blocks: Values, place: Across, tile: Tile, of_values: Values) -> None:  # noqa: ARG001
    blocks = uint64(tile.blocks)
    for row in range(uint64(tile.height)):
        start = row * blocks
        for lane in range(blocks):
            of_values[start + lane] = of_blocks[lane]


def _peaks_along(room: Room, place: Along, tile: Tile) -> None:  # noqa: ARG001
    v, height = room.values, uint64(tile.height)
    for block in range(uint64(tile.blocks)):
        peak = int32(0)
        for i in range(block * height, block * height + height):
            peak = max(peak, int32(bits_of(v[i]) & MAGNITUDE))
        room.highs[block] = peak


def _peaks_across(room: Room, place: Across, tile: Tile) -> None:  # noqa: ARG001
    v, peaks, blocks = room.values, room.highs, uint64(tile.blocks)
    for lane in range(blocks):
        peaks[lane] = int32(0)
    for row in range(uint64(tile.height)):
        start = row * blocks
        for lane in range(blocks):
            peaks[lane] = max(peaks[lane], int32(bits_of(v[start + lane]) & MAGNITUDE))


def _extremes_along(room: Room, place: Along, tile: Tile) -> None:  # noqa: ARG001
    v, height = room.values, uint64(tile.height)
    for block in range(uint64(tile.blocks)):
        low = high = int32(0)
        for i in range(block * height, block * height + height):
            key = ordered(v[i])
            low, high = min(low, key), max(high, key)
        room.lows[block], room.highs[block] = low, high


def _extremes_across(room: Room, place: Across, tile: Tile) -> None:  # noqa: ARG001
    v, lows, highs, blocks = room.values, room.lows, room.highs, uint64(tile.blocks)
    for lane in range(blocks):
        lows[lane] = highs[lane] = int32(0)
    for row in range(uint64(tile.height)):
        start = row * blocks
        for lane in range(blocks):
            key = ordered(v[start + lane])
            lows[lane] = min(lows[lane], key)
            highs[lane] = max(highs[lane], key)


by_kind(find_tile, 0, {Along: tile_along, Across: tile_across})
by_kind(spread, 1, {Along: _spread_along, Across: _spread_across})
by_kind(find_peaks, 1, {Along: _peaks_along, Across: _peaks_across})
by_kind(find_extremes, 1, {Along: _extremes_along, Across: _extremes_across})
