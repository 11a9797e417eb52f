"""Compiled rounding: the bits of `round_to_element`, under a unit for each value."""

import numpy as np
import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.choice import has_compiler
from mpq.kernels.rounding import round_to_element

if not has_compiler("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

import numba

from mpq.kernels.cpu_elements import rounding_numbers
from mpq.kernels.cpu_rounding import round_values


@numba.njit(error_model="numpy")
def rounded(v, units, extra, r):
    round_values(v, units, extra, v.size, r)


def any_values(highest: float) -> torch.Tensor:
    """Values of any exponent up to that of `highest`, every other one with few digits."""
    bits = torch.randint(0, 2**31, (4096,), generator=torch.Generator().manual_seed(0))
    bits[::2] &= 0x7FF00000
    x = bits.int().view(torch.float32)
    x = torch.where(x <= highest, x, torch.frexp(x.nan_to_num()).mantissa * highest)
    x[1::3] *= -1
    x[7::9] = torch.arange(x[7::9].numel()) / 4 - 50
    return x


@pytest.mark.parametrize(
    "text",
    [
        *("bfp4", "int8", "int4f", "fixed8.4", "bfp24", "mxfp4", "fp8-e4m3", "dmf-e3m2", "fp16"),
        *("log8", "log4(zero=false)", "minifloat-e3m0", "nf4"),
    ],
)
def test_rounding_has_the_bits_of_eager(text):
    element = parse_format(text).element
    x = any_values(min(element.largest * 2, 3e38))
    v = x.numpy().copy()
    rounded(v, np.ones_like(v), np.empty_like(v), rounding_numbers(element))
    want = round_to_element(x.clone(), element)
    assert np.array_equal(v.view(np.int32), want.numpy().view(np.int32))


def test_zero_points_decide_ties():
    element = parse_format("int4a").element
    x = any_values(20.0).repeat(3)
    zero_points = torch.arange(x.numel()).remainder(16).float()
    v = x.numpy().copy()
    rounded(v, np.ones_like(v), zero_points.numpy(), rounding_numbers(element))
    want = round_to_element(x.clone(), element, zero_points)
    assert np.array_equal(v.view(np.int32), want.numpy().view(np.int32))


def test_units_divide_and_multiply_and_those_that_underflowed_leave_zeros():
    v = np.array([0.3, 5.0, -2.0, 1e-44], dtype=np.float32)
    units = np.array([0.25, 2.0, 0.5, 0.0], dtype=np.float32)
    rounded(v, units, np.empty_like(v), rounding_numbers(parse_format("int4").element))
    assert v.tolist() == [0.25, 4.0, -2.0, 0.0]


def test_a_zero_has_no_sign_under_a_unit_below_zero():
    v = np.array([16.0, -0.3, 0.3, -0.0, 0.0, -14.0, -16.0], dtype=np.float32)
    units = np.full_like(v, -2.0)
    rounded(v, units, np.empty_like(v), rounding_numbers(parse_format("int4f").element))
    assert v.tolist() == [16.0, 0.0, 0.0, 0.0, 0.0, -14.0, -14.0]
    assert not np.signbit(v[1:5]).any()
