"""Where blocks lie in memory, for compiled loops: tiles of whole blocks that stay in the cache.

Blocks along the last axis follow each other in memory; along another axis they lie across it, and
a tile takes those of neighbouring lanes, so that nothing is transposed.
"""

import math
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mpq.formats.block import WHOLE, Block, positive_axis

TILE = 1 << 12
"""Values of a tile along memory: 16 KiB of float32, so that its stages work in the L1 cache."""

LARGEST_BLOCK = 1 << 20
"""The most values of a tile, and so of a block: its scratch is 12 MiB, more than most caches."""

LANES = (32, 512)
"""The fewest and the most lanes of a tile across memory: runs that are worth their cache lines.

Blocks so long that the fewest would be more than `LARGEST_BLOCK` values take what lanes it allows.
"""


class Along(NamedTuple):
    """Blocks along memory, one after the other: the axis is the last.

    Attributes:
        length: Values of a row; blocks do not reach over its end.
        size: Values of a block.
        blocks: Blocks in a tile.
        row: Values below one scale of a nested pair.
        tiles: Tiles of the tensor.
        room: The most values in a tile.
    """

    length: int
    size: int
    blocks: int
    row: int
    tiles: int
    room: int


class Across(NamedTuple):
    """Blocks across memory, side by side: the axis is not the last.

    Attributes:
        length: Values along the axis; blocks do not reach over its end.
        inner: Values between two neighbours along the axis.
        size: Values of a block.
        blocks: Blocks in a tile.
        tiles: Tiles of the tensor.
        room: The most values in a tile.
    """

    length: int
    inner: int
    size: int
    blocks: int
    tiles: int
    room: int


Place = Along | Across


class Tile(NamedTuple):
    """Some neighbouring blocks.

    Attributes:
        start: Where the first value stands in the tensor.
        height: Values of a block.
        blocks: The number of blocks.
        stored: Values along memory that are there; a short block is filled up with zeros.
        filled: Values of full blocks.
        row: The scale above the first block across memory.
    """

    start: int
    height: int
    blocks: int
    stored: int
    filled: int
    row: int


class Room(NamedTuple):
    """Scratch of one tile at a time.

    Attributes:
        values: Of the tile, float32.
        units: Of each value.
        extra: Of each value, what its kind of element needs.
        unit: Of each block.
        zero: Of each block, its zero point.
        highs: Of each block, the bits of its largest magnitude, or its largest value's order.
        lows: Of each block, its least value's order.
    """

    values: NDArray[np.float32]
    units: NDArray[np.float32]
    extra: NDArray[np.float32]
    unit: NDArray[np.float32]
    zero: NDArray[np.float32]
    highs: NDArray[np.int32]
    lows: NDArray[np.int32]

    @classmethod
    def of(cls, place: Place) -> Self:
        """Room for every tile of a place."""
        values = np.empty((3, place.room), dtype=np.float32)
        blocks = np.empty((4, place.blocks), dtype=np.float32)
        return cls(*values, *blocks[:2], *blocks[2:].view(np.int32))


@lru_cache(maxsize=4096)
def place_of(shape: tuple[int, ...], axis: int, block: Block) -> Place:
    """Where the blocks of a contiguous tensor lie, and the tiles that hold them."""
    at = positive_axis(shape, axis)
    length = shape[at] if shape else 1
    outer, inner = math.prod(shape[:at]), math.prod(shape[at + 1 :])
    size = length if block.columns == WHOLE else min(block.columns, length)
    if inner > 1:
        most = max(1, min(LANES[1], inner, LARGEST_BLOCK // size))
        lanes = min(max(TILE // size, LANES[0]), most)
        tiles = outer * math.ceil(length / size) * math.ceil(inner / lanes)
        return Across(length, inner, size, lanes, tiles, size * lanes)
    row = length
    if length % size == 0:
        # No block is short: rows follow each other as if they were one.
        outer, length = 1, outer * length
    blocks = max(1, min(TILE // size, math.ceil(length / size)))
    tiles = outer * math.ceil(length / (blocks * size))
    return Along(length, size, blocks, row, tiles, blocks * size)


def tile_along(place: Along, index: int) -> Tile:
    """A tile along memory by its number."""
    reach = place.blocks * place.size
    segments = -(-place.length // reach)
    first = index % segments * reach
    stored = min(reach, place.length - first)
    blocks = -(-stored // place.size)
    start = index // segments * place.length + first
    return Tile(start, place.size, blocks, stored, blocks * place.size, 0)


def tile_across(place: Across, index: int) -> Tile:
    """A tile across memory by its number."""
    lanes = -(-place.inner // place.blocks)
    lane = index % lanes * place.blocks
    outer = index // lanes
    bands = -(-place.length // place.size)
    outer, first = outer // bands, outer % bands * place.size
    height = min(place.size, place.length - first)
    width = min(place.blocks, place.inner - lane)
    start = (outer * place.length + first) * place.inner + lane
    return Tile(start, height, width, width, height * width, outer * place.inner + lane)
