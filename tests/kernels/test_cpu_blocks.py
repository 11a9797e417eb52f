"""Compiled loops over blocks: peaks, extremes, and what is spread over their values."""

import numpy as np
import pytest
import torch

from mpq.formats.block import Block
from mpq.kernels.choice import has_compiler

if not has_compiler("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

import numba

from mpq.kernels.cpu_blocks import find_extremes, find_peaks, find_tile, ordered, spread, unordered
from mpq.kernels.cpu_tiles import Room, place_of, tile_across, tile_along

INF = float("inf")


@numba.njit
def worked_on(room, place, index):
    tile = find_tile(place, index)
    find_peaks(room, place, tile)
    peaks = room.highs.copy()
    spread(room.unit, place, tile, room.units)
    find_extremes(room, place, tile)
    return tile, peaks


@pytest.mark.parametrize("axis", [0, 1])
def test_each_block_is_reduced_and_spread(axis):
    x = torch.randn(16, 24).sub(0.5)
    x[3, 5] = -9.0
    blocks = x if axis else x.T
    place = place_of(tuple(x.shape), axis, Block(columns=blocks.shape[1]))
    room = Room.of(place)
    room.values[:] = x.flatten().numpy()
    room.unit[:] = np.arange(len(blocks))
    tile, peaks = worked_on(room, place, 0)
    assert tile == (tile_along if axis else tile_across)(place, 0)
    assert np.array_equal(peaks.view(np.float32), blocks.abs().amax(1).numpy())
    assert np.array_equal(room.highs.view(np.float32), blocks.amax(1).clamp(min=0).numpy())
    lows = np.where(room.lows < 0, room.lows ^ 0x7FFFFFFF, room.lows).astype(np.int32)
    assert np.array_equal(lows.view(np.float32), blocks.amin(1).clamp(max=0).numpy())
    units = room.units.reshape(x.shape)
    assert ((units if axis else units.T) == np.arange(len(blocks))[:, None]).all()


def test_ordered_whole_numbers_follow_the_floats():
    @numba.njit
    def key(value):
        return ordered(value)

    @numba.njit
    def bits(key):
        return unordered(key)

    values = np.array([-INF, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, INF], dtype=np.float32)
    keys = [key(value) for value in values]
    assert keys == sorted(keys)
    back = np.array([bits(np.int32(key)) for key in keys], dtype=np.int32)
    assert np.array_equal(back, values.view(np.int32))
