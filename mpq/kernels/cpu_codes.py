"""Compiled loops that read packed codes and look up what each stands for.

The bits of a code are counted from the lowest of byte 0 on, as `mpq.formats.packing` lays them.
"""

from typing import Any

from numpy import uint64
from numpy.typing import NDArray

from mpq.kernels.cpu_compiler import by_kind, compiled, word_at
from mpq.kernels.cpu_rounding import Values
from mpq.kernels.cpu_stored import Codes
from mpq.kernels.cpu_tiles import Across, Along, Place, Tile

FOUR_FIT = 14
"""Bits of the widest codes of which a word holds four, wherever in a byte the first begins."""


@compiled
def word_of(codes: Codes, index: uint64) -> uint64:
    """A word whose lowest bits are a code's, followed by as many further codes as it holds."""
    bit = index * uint64(codes.width)
    at = min(bit >> uint64(3), uint64(codes.packed.size - 8))
    return word_at(codes.packed, at) >> (bit - (at << uint64(3)))


@compiled
def value_at(codes: Codes, index: int) -> Any:
    """What a code stands for."""
    mask = (uint64(1) << uint64(codes.width)) - uint64(1)
    return codes.values[word_of(codes, uint64(index)) & mask]


@compiled
def look_up(codes: Codes, first: uint64, count: uint64, out: NDArray[Any], start: uint64) -> None:
    """Writes to `out`, from `start` on, what `count` codes from `first` on stand for."""
    width = uint64(codes.width)
    mask = (uint64(1) << width) - uint64(1)
    fours = count >> uint64(2) if width <= uint64(FOUR_FIT) else uint64(0)
    for four in range(fours):
        step = four << uint64(2)
        word, to = word_of(codes, first + step), start + step
        out[to] = codes.values[word & mask]
        out[to + uint64(1)] = codes.values[word >> width & mask]
        out[to + uint64(2)] = codes.values[word >> (width + width) & mask]
        out[to + uint64(3)] = codes.values[word >> (width + width + width) & mask]
    for i in range(fours << uint64(2), count):
        out[start + i] = codes.values[word_of(codes, first + i) & mask]


def read_values(codes: Codes, place: Place, tile: Tile, v: Values) -> None:
    """Fills `v` with the tile's values in units of the element."""
    raise NotImplementedError("only compiled code calls this")


def _read_along(codes: Codes, place: Along, tile: Tile, v: Values) -> None:  # noqa: ARG001
    look_up(codes, uint64(tile.start), uint64(tile.stored), v, uint64(0))


def _read_across(codes: Codes, place: Across, tile: Tile, v: Values) -> None:
    width, inner = uint64(tile.stored), uint64(place.inner)
    for row in range(uint64(tile.height)):
        look_up(codes, uint64(tile.start) + row * inner, width, v, row * width)


by_kind(read_values, 1, {Along: _read_along, Across: _read_across})
