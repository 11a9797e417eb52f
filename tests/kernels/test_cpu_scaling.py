"""Compiled choice of units: the bits of `choose_scales`, and which tiles are ordinary."""

import numpy as np
import pytest
import torch

from mpq.formats.block import Block
from mpq.formats.format import Format
from mpq.formats.scale import SharedExponent
from mpq.formats.zoo import parse_format
from mpq.kernels.choice import has_compiler
from mpq.kernels.scaling import choose_scales

if not has_compiler("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

import numba

from mpq.kernels.cpu_blocks import find_tile
from mpq.kernels.cpu_scales import Given, float_scale_numbers, nested_numbers, shared_numbers
from mpq.kernels.cpu_scaling import choose_units
from mpq.kernels.cpu_tiles import Room, place_of

INF, NAN = float("inf"), float("nan")


@numba.njit(error_model="numpy")
def chosen(room, place, s):
    return choose_units(room, place, find_tile(place, 0), s)


def numbers(named: Format, dtype: torch.dtype, above: float = 1.0):
    if isinstance(named.scale, SharedExponent):
        return shared_numbers(named.element, named.scale, dtype)
    if str(named).startswith("nvfp4"):
        return nested_numbers(named.element, np.array([above], dtype=np.float32), dtype)
    return float_scale_numbers(named.element, named.scale, dtype)


def units_of(x: torch.Tensor, s, axis: int = 1) -> tuple[bool, np.ndarray, np.ndarray]:
    """Whether a tile is ordinary, the unit of each value and what belongs to it beside."""
    place = place_of(tuple(x.shape), axis, Block(columns=16))
    assert place.tiles == 1
    room = Room.of(place)
    room.values[:] = x.flatten().numpy()
    is_ordinary = chosen(room, place, s)
    shape = x.shape
    return is_ordinary, room.units.reshape(shape), room.extra.reshape(shape)


FORMATS = ["bfp4", "bl8", "mxfp4", "bfp4(scale_rule=ceil)", "bfp4(exponent=3)"]
FORMATS += ["int4-g16", "int4-g16-sf16", "int4-g16-sf32", "int4a-g16", "int8a-g16-sf16", "nvfp4"]
FORMATS += ["int4f-g16", "int2f-g16-sf16", "int8f-g16-sf32"]


@pytest.mark.parametrize("text", FORMATS)
def test_units_have_the_bits_of_eager(text):
    named = parse_format(text)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 16, generator=generator) * 2.0 ** torch.arange(-8.0, 8.0)[:, None]
    x[3], x[4], x[5] = 0.0, x[4].abs() + 1, 2.0 ** torch.arange(16) / 2**10
    x[6, :2], x[7], x[8] = torch.tensor([9.0, -9.0]), -x[4], -0.0
    above = torch.full((16, 1), 1.0)
    want = choose_scales(x, named, torch.float32, above)
    for axis, blocks in ((1, x), (0, x.T.contiguous())):
        is_ordinary, units, extra = units_of(blocks, numbers(named, torch.float32), axis)
        assert is_ordinary
        units, extra = (part if axis else part.T for part in (units, extra))
        assert np.array_equal(units, want.unit.expand(16, 16).numpy())
        assert not np.signbit(units[units == 0]).any()
        if want.zero_point is not None:
            assert np.array_equal(extra, want.zero_point.expand(16, 16).numpy())


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("fault", [NAN, INF, -INF, 3.3e38])
def test_what_is_not_finite_or_not_held_is_not_ordinary(text, fault):
    named = parse_format(text)
    x = torch.ones(4, 16)
    dtype = torch.float16 if fault == 3.3e38 else torch.float32
    assert units_of(x, numbers(named, dtype))[0]
    x[2, 5] = fault
    assert not units_of(x, numbers(named, dtype, above=2.0**110))[0]


def test_a_unit_that_is_given_is_that_of_all_values():
    x = torch.ones(4, 16)
    is_ordinary, units, extra = units_of(x, Given(np.float32(0.5), np.float32(3.0)))
    assert is_ordinary
    assert (units == 0.5).all()
    assert (extra == 3.0).all()
    x[0, 0] = INF
    assert not units_of(x, Given(np.float32(0.5), np.float32(3.0)))[0]
