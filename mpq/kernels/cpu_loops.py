"""The compiled loop over a tensor's tiles: each passes through its stages in the cache.

It is compiled for the dtype, the kind of element and the kind of scale that a call brings.
"""

from typing import Any

from numpy.typing import NDArray

from mpq.kernels.cpu_blocks import find_tile
from mpq.kernels.cpu_compiler import entered
from mpq.kernels.cpu_memory import load, store
from mpq.kernels.cpu_rounding import round_values
from mpq.kernels.cpu_scales import Numbers
from mpq.kernels.cpu_scaling import choose_units
from mpq.kernels.cpu_tiles import Place, Room


@entered
def quantize_tiles(
    x: NDArray[Any],
    out: NDArray[Any],
    left: NDArray[Any],
    place: Place,
    room: Room,
    numbers: Numbers,
    reach: tuple[int, int],
) -> None:
    """Writes the tiles of a reach whose blocks are all ordinary, and marks the others `left`."""
    for index in range(reach[0], reach[1]):
        tile = find_tile(place, index)
        load(x, place, tile, room.values)
        if choose_units(room, place, tile, numbers.scale):
            round_values(room.values, room.units, room.extra, tile.filled, numbers.element)
            store(room.values, place, tile, out)
        else:
            left[index] = 1
