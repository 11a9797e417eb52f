"""The loops that decode: products rounded once, zeros with a sign or without, blocks too large."""

import numpy as np
import pytest
import torch

from mpq.formats.block import Block
from mpq.formats.zoo import parse_format
from mpq.kernels.choice import has_compiler
from mpq.kernels.encoded import encode_blocks

if not has_compiler("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

import numba

from mpq.kernels.cpu_decoding import decode_alone, decode_tiles, scaled
from mpq.kernels.cpu_stored import (
    Codes,
    Products,
    Scales,
    Scratch,
    element_codes,
    products_of,
    result_codes,
    units_of,
)
from mpq.kernels.cpu_tiles import place_of


@numba.njit
def scaled_each(values, zeros, units, zero, out):
    for i in range(out.size):
        out[i] = scaled(values[i], zeros[i], units[i], zero)


def products(values, zeros, units, zero=-0.0) -> np.ndarray:
    out = np.empty(len(values), dtype=np.float32)
    scaled_each(np.float32(values), np.float32(zeros), np.float64(units), np.float32(zero), out)
    return out


def test_a_product_is_rounded_once_subnormal_or_not():
    random = np.random.default_rng(0)
    values = random.standard_normal(4000).astype(np.float32)
    units = (random.standard_normal(4000) * 2.0 ** random.integers(-148, 100, 4000)).astype("f4")
    got = products(values, np.zeros(4000), units)
    assert np.array_equal(got.view(np.int32), (values * units).view(np.int32))
    # Below float32's smallest unit, as under a shared exponent.
    assert products([2.0**63], [0], [2.0**-191]).tolist() == [2.0**-128]


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_have_a_sign_where_the_element_has(zero):
    codes = ([0.0, -0.0, 3.0, 3.0, -8.0, -8.0, 7.0], [0, 0, 3, 1, 0, 0, 0])
    got = products(*codes, [-0.5, 0.5, -0.5, -0.5, -0.5, 0.0, -0.0], zero)
    assert got.tolist() == [0.0, 0.0, 0.0, -1.0, 4.0, 0.0, 0.0]
    signs = [True, True, True, True, False, True, True]
    assert np.signbit(got).tolist() == (signs if np.signbit(zero) else [x == -1.0 for x in got])


def scratch_of(place) -> Scratch:
    blocks = (np.empty(place.blocks), np.empty(place.blocks, dtype=np.float32))
    return Scratch(np.empty(place.room, dtype=np.float32), *blocks)


@pytest.mark.parametrize("axis", [0, 1])
def test_negative_units_turn_signs(axis):
    table = np.float32([0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1])
    packed = np.arange(0, 256, 2, dtype=np.uint8)  # 16 x 16 codes, the even ones first
    each = np.stack([packed & 15, packed >> 4], axis=1).reshape(16, 16)
    units = np.float32([-0.5, 0.25] * 8)
    place = place_of((16, 16), axis, Block(columns=16))
    out = np.empty(256, dtype=np.float32)
    told = (Codes(packed, 4, table), Scales(units), Products(8.0, 3e38, np.float32(0.0)))
    assert decode_tiles(*told, out, place, scratch_of(place), (0, place.tiles))
    want = table[each] * (units[:, None] if axis else units) + 0.0
    assert np.array_equal(out.view(np.int32), want.astype(np.float32).reshape(-1).view(np.int32))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), 1e38])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_block_whose_values_the_dtype_does_not_hold_is_told(axis, scale):
    encoded = encode_blocks(torch.randn(64, 64), parse_format("int4-g16-sf32"), axis)
    place = place_of((64, 64), axis, Block(columns=16))
    codes, out = element_codes(encoded), np.empty(64 * 64, dtype=np.float32)

    def fits() -> bool:
        told = (codes, units_of(encoded), products_of(encoded, torch.float32))
        return decode_tiles(*told, out, place, scratch_of(place), (0, place.tiles))

    assert fits()
    encoded.scales[200] = scale
    assert not fits()


def test_a_reach_of_codes_is_written_and_no_other():
    encoded = encode_blocks(torch.randn(40), parse_format("log4"), 0)
    want = torch.full((40,), 9.0)
    out = want.numpy().copy()
    decode_alone(result_codes(encoded, torch.float32), out, (7, 30))
    every = np.empty(40, dtype=np.float32)
    decode_alone(result_codes(encoded, torch.float32), every, (0, 40))
    want[7:30] = torch.from_numpy(every)[7:30]
    assert np.array_equal(out, want.numpy())
