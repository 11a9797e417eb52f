"""The compiled loops that decode: every packed byte is read once and every value written once.

Products are taken in float64, which holds that of any value and its unit exactly: rounded once to
float32, it is what float32 arithmetic gives under a float scale, and what eager's float64 gives
under a power of two.
"""

from typing import Any

from numpy import float32, float64, uint64
from numpy.typing import NDArray

from mpq.kernels.cpu_blocks import find_tile
from mpq.kernels.cpu_codes import look_up, read_values, value_at
from mpq.kernels.cpu_compiler import by_kind, compiled, entered
from mpq.kernels.cpu_memory import narrowed, widened
from mpq.kernels.cpu_scaling import row_of
from mpq.kernels.cpu_stored import (
    Codes,
    Pairs,
    Powers,
    Products,
    Scales,
    ScalesAndZeros,
    Scratch,
    Units,
)
from mpq.kernels.cpu_tiles import Across, Along, Place, Tile


@entered
def decode_alone(codes: Codes, out: NDArray[Any], reach: tuple[int, int]) -> None:
    """Writes the values of a reach of codes, each of which stands for a value of the result."""
    first = uint64(reach[0])
    look_up(codes, first, uint64(reach[1]) - first, out, first)


@entered
def decode_tiles(
    codes: Codes,
    units: Units,
    products: Products,
    out: NDArray[Any],
    place: Place,
    scratch: Scratch,
    reach: tuple[int, int],
) -> bool:
    """Whether all blocks of a reach of tiles are ordinary; then its values are written."""
    for index in range(reach[0], reach[1]):
        tile = find_tile(place, index)
        if not _read_units(units, place, tile, scratch, products):
            return False
        read_values(codes, place, tile, scratch.values)
        scale_values(scratch, place, tile, products.zero, out)
    return True


@compiled
def _read_units(
    units: Units, place: Place, tile: Tile, scratch: Scratch, products: Products
) -> bool:
    faults = 0
    for i in range(tile.blocks):
        block = block_of(place, tile, i)
        unit = unit_of(units, block, row_of(place, tile, i))
        scratch.units[i] = unit
        scratch.zeros[i] = zero_of(units, block)
        faults += 0 if abs(unit) * products.largest <= products.limit else 1  # NaN is a fault
    return faults == 0


def block_of(place: Place, tile: Tile, block: int) -> int:
    """The number, among those of the tensor, of a block of the tile."""
    raise NotImplementedError("only compiled code calls this")


def unit_of(units: Any, block: int, row: int) -> float64:
    """The value of an element's 1 in a block, which lies in a row of the tensor."""
    raise NotImplementedError("only compiled code calls this")


def zero_of(units: Any, block: int) -> float32:
    """The zero point of a block; 0 where there is none."""
    raise NotImplementedError("only compiled code calls this")


def scale_values(scratch: Scratch, place: Place, tile: Tile, zero: float32, out: Any) -> None:
    """Writes the tile's values, in units of the element, as values of the result."""
    raise NotImplementedError("only compiled code calls this")


def _block_along(place: Along, tile: Tile, block: int) -> int:
    row, column = tile.start // place.row, tile.start % place.row
    return row * -(-place.row // place.size) + column // place.size + block


def _block_across(place: Across, tile: Tile, block: int) -> int:
    band = tile.start // place.inner % place.length // place.size
    return (tile.row + block) * -(-place.length // place.size) + band


@compiled
def scaled(value: float32, zero_point: float32, unit: float64, zero: float32) -> float32:
    """The value of a code less its zero point; `zero` as in `Products`."""
    return float32(float32(float64(float32(value - zero_point)) * unit) + zero)


def _scale_along(scratch: Scratch, place: Along, tile: Tile, zero: float32, out: Any) -> None:  # noqa: ARG001
    v, start, height = scratch.values, uint64(tile.start), uint64(tile.height)
    for block in range(uint64(tile.blocks)):
        unit, zero_point = scratch.units[block], scratch.zeros[block]
        first = block * height
        for i in range(first, min(first + height, uint64(tile.stored))):
            out[start + i] = narrowed(scaled(v[i], zero_point, unit, zero), out[start + i])


def _scale_across(scratch: Scratch, place: Across, tile: Tile, zero: float32, out: Any) -> None:
    v, units, zeros, width = scratch.values, scratch.units, scratch.zeros, uint64(tile.stored)
    for row in range(uint64(tile.height)):
        target, source = uint64(tile.start) + row * uint64(place.inner), row * width
        for i in range(width):
            value = scaled(v[source + i], zeros[i], units[i], zero)
            out[target + i] = narrowed(value, out[target + i])


by_kind(block_of, 0, {Along: _block_along, Across: _block_across})
by_kind(scale_values, 1, {Along: _scale_along, Across: _scale_across})
by_kind(
    unit_of,
    0,
    {
        Powers: lambda units, block, row: value_at(units.codes, block),  # noqa: ARG005
        Scales: lambda units, block, row: float64(widened(units.stored[block])),  # noqa: ARG005
        ScalesAndZeros: lambda units, block, row: float64(widened(units.stored[block])),  # noqa: ARG005
        Pairs: lambda units, block, row: float64(
            float32(value_at(units.codes, block) * units.above[row if units.above.size > 1 else 0])
        ),
    },
)
by_kind(
    zero_of,
    0,
    {
        Powers: lambda units, block: float32(0.0),  # noqa: ARG005
        Scales: lambda units, block: float32(0.0),  # noqa: ARG005
        ScalesAndZeros: lambda units, block: value_at(units.zeros, block),
        Pairs: lambda units, block: float32(0.0),  # noqa: ARG005
    },
)
