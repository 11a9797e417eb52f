"""Tiles in and out of memory: conversions of 16-bit floats have torch's bits."""

import numpy as np
import pytest
import torch

from mpq.formats.block import Block
from mpq.kernels.choice import has_compiler

if not has_compiler("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

import numba

from mpq.kernels.cpu_blocks import find_tile
from mpq.kernels.cpu_memory import load, narrowed, store, widened
from mpq.kernels.cpu_tiles import place_of

STORED = {torch.float16: np.int16, torch.bfloat16: np.uint16}


@numba.njit
def widen(stored, out):
    for i in range(out.size):
        out[i] = widened(stored[i])


@numba.njit
def narrow(values, out):
    for i in range(out.size):
        out[i] = narrowed(values[i], out[i])


@pytest.mark.parametrize("dtype", STORED)
def test_every_number_of_16_bits_widens_as_torch_widens_it(dtype):
    x = torch.arange(-(2**15), 2**15).short().view(dtype)
    got = np.empty(x.numel(), dtype=np.float32)
    widen(x.view(torch.int16).numpy().view(STORED[dtype]), got)
    want = x.float().numpy()
    is_number = ~np.isnan(want)
    assert np.array_equal(got[is_number].view(np.int32), want[is_number].view(np.int32))
    assert np.isnan(got[~is_number]).all()


@pytest.mark.parametrize("dtype", STORED)
def test_a_float32_narrows_as_torch_narrows_it(dtype):
    bits = torch.randint(0, 2**31, (60000,), generator=torch.Generator().manual_seed(0)).int()
    bits[::2] = bits[::2] & 0x7FFF8000 | 0x1000  # ties of float16
    bits[1::4] = bits[1::4] & 0x7FFF0000 | 0x8000  # ties of bfloat16
    x = bits.view(torch.float32)
    x[::3] = torch.frexp(x[::3].nan_to_num()).mantissa * 2.0 ** torch.randint(-26, 15, (20000,))
    x = torch.cat([x, -x])[torch.cat([x, -x]).isfinite()]
    got = np.empty(x.numel(), dtype=STORED[dtype])
    narrow(x.numpy(), got)
    assert np.array_equal(got.view(np.int16), x.to(dtype).view(torch.int16).numpy())


@numba.njit
def copied(x, place, index, v, out):
    tile = find_tile(place, index)
    load(x, place, tile, v)
    store(v, place, tile, out)
    return tile


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_value_is_read_and_written(axis):
    x = torch.randn(3, 40, 70)
    place = place_of((3, 40, 70), axis, Block(columns=16))
    out, v = np.zeros(x.numel(), dtype=np.float32), np.ones(place.room, dtype=np.float32)
    for index in range(place.tiles):
        tile = copied(x.flatten().numpy(), place, index, v, out)
        assert axis < 2 or not v[tile.stored : tile.filled].any()
    assert np.array_equal(out, x.flatten().numpy())
