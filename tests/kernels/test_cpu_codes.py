"""Packed codes are read as `mpq.formats.packing` packed them, from anywhere, to the last byte."""

import numpy as np
import pytest

from mpq.formats.block import Block
from mpq.formats.packing import pack
from mpq.kernels.choice import has_compiler

if not has_compiler("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

import numba

from mpq.kernels.cpu_blocks import find_tile
from mpq.kernels.cpu_codes import look_up, read_values, value_at
from mpq.kernels.cpu_stored import Codes
from mpq.kernels.cpu_tiles import place_of


@numba.njit
def read(codes, first, count, out):
    look_up(codes, numba.uint64(first), numba.uint64(count), out, numba.uint64(1))


@numba.njit
def read_one(codes, index):
    return value_at(codes, index)


@numba.njit
def read_tile(codes, place, index, v):
    tile = find_tile(place, index)
    read_values(codes, place, tile, v)
    return tile


def codes_of(width: int, count: int) -> tuple[Codes, np.ndarray]:
    """Random codes, and the values that a table of squares gives them."""
    random = np.random.default_rng(width)
    each = random.integers(0, 2**width, count)
    table = np.arange(2**width, dtype=np.float32) ** 2
    return Codes(pack(each, width), width, table), table[each]


@pytest.mark.parametrize("width", range(1, 17))
def test_codes_of_every_width_are_read_from_anywhere(width):
    count = 150
    codes, want = codes_of(width, count)
    for first in (0, 1, 2, 3, 7, 64, count - 5, count - 1):
        out = np.full(count - first + 2, -1, dtype=np.float32)
        read(codes, first, count - first, out)
        assert np.array_equal(out[1:-1], want[first:])
        assert out[0] == out[-1] == -1
        assert read_one(codes, first) == want[first]


def test_the_values_of_a_table_are_copied_whatever_they_are():
    codes, _ = codes_of(4, 40)
    for dtype in (np.uint16, np.int16):
        table = (np.arange(16) * 2000).astype(dtype)
        out = np.zeros(42, dtype=dtype)
        read(codes._replace(values=table), 0, 40, out)
        ones = np.zeros(42, dtype=np.float32)
        read(codes._replace(values=np.arange(16, dtype=np.float32)), 0, 40, ones)
        assert np.array_equal(out[1:-1], table[ones[1:-1].astype(int)])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tile_is_filled_with_its_own_values(axis):
    shape = (3, 40, 70)
    codes, want = codes_of(5, 3 * 40 * 70)
    place = place_of(shape, axis, Block(columns=16))
    v, seen = np.empty(place.room, dtype=np.float32), 0
    for index in range(place.tiles):
        tile = read_tile(codes, place, index, v)
        rows = tile.height if axis < 2 else 1
        for row in range(rows):
            start = tile.start + row * (place.inner if axis < 2 else 0)
            got = v[row * tile.stored : (row + 1) * tile.stored]
            assert np.array_equal(got, want[start : start + tile.stored])
        seen += rows * tile.stored
    assert seen == want.size
