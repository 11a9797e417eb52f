"""Tiles of whole blocks: where they lie, and that each value is in one."""

import numpy as np
import pytest

from mpq.formats.block import ROW, Block
from mpq.kernels.cpu_tiles import (
    LANES,
    LARGEST_BLOCK,
    TILE,
    Across,
    Along,
    Room,
    place_of,
    tile_across,
    tile_along,
)


def test_blocks_that_fill_their_rows_make_one_long_row():
    place = place_of((6, 64), 1, Block(columns=16))
    assert place == Along(length=384, size=16, blocks=24, row=64, tiles=1, room=384)


def test_short_blocks_keep_rows_apart():
    place = place_of((6, 70), -1, Block(columns=16))
    assert (place.length, place.blocks, place.tiles, place.room) == (70, 5, 6, 80)
    assert tile_along(place, 2) == (140, 16, 5, 70, 80, 0)


def test_a_long_row_is_cut_between_blocks():
    place = place_of((10 * TILE + 5,), 0, Block(columns=16))
    assert (place.blocks, place.tiles) == (TILE // 16, 11)
    assert tile_along(place, 10) == (10 * TILE, 16, 1, 5, 16, 0)


def test_tiles_across_memory_are_lanes_beside_each_other():
    place = place_of((3, 40, 100), 1, Block(columns=16))
    assert place == Across(length=40, inner=100, size=16, blocks=100, tiles=9, room=1600)
    assert tile_across(place, 5) == (4000 + 32 * 100, 8, 100, 100, 800, 100)
    assert place_of((4096, 4096), 0, ROW).blocks == LANES[0]


def test_blocks_longer_than_a_row_are_rows():
    assert place_of((2048, 64), 1, Block(columns=4096)) == place_of((2048, 64), 1, ROW)
    assert place_of((2048, 64), 1, Block(columns=4096)).tiles == 32


@pytest.mark.parametrize("length", [1 << 16, LARGEST_BLOCK, LARGEST_BLOCK + 1])
def test_long_blocks_across_memory_take_fewer_lanes(length):
    place = place_of((length, 32), 0, ROW)
    assert place.blocks == max(1, LARGEST_BLOCK // length)
    assert place.room <= max(LARGEST_BLOCK, length)


@pytest.mark.parametrize("block", [Block(columns=16), Block(columns=7), ROW])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_value_is_in_one_tile(axis, block):
    place = place_of((3, 70, 1000), axis, block)
    seen = np.zeros(3 * 70 * 1000, dtype=int)
    for index in range(place.tiles):
        if isinstance(place, Along):
            tile = tile_along(place, index)
            seen[tile.start : tile.start + tile.stored] += 1
        else:
            tile = tile_across(place, index)
            for row in range(tile.height):
                start = tile.start + row * place.inner
                seen[start : start + tile.stored] += 1
        assert tile.filled <= place.room
        assert tile.blocks <= place.blocks
    assert (seen == 1).all()


def test_a_room_holds_a_tile():
    place = place_of((6, 70), -1, Block(columns=16))
    room = Room.of(place)
    assert [part.size for part in room] == [80, 80, 80, 5, 5, 5, 5]
    assert room.lows.dtype == np.int32
