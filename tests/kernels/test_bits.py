"""Bits of floats: exponents and powers of two are exact."""

import ml_dtypes
import numpy as np
import pytest
import torch

from mpq.kernels.bits import (
    FLOAT32,
    FLOAT64,
    bits_of,
    bits_of_integer,
    exponents_of,
    largest_held,
    powers_of_two,
)


@pytest.mark.parametrize("layout", [FLOAT32, FLOAT64])
def test_powers_of_two_there_and_back(layout):
    exponents = torch.arange(1 - layout.bias, layout.bias + 1)
    powers = powers_of_two(exponents, layout)
    assert torch.equal(powers.double(), torch.ldexp(torch.ones(()).double(), exponents))
    assert torch.equal(exponents_of(powers), exponents.to(layout.integer))
    assert torch.equal(exponents_of(powers * 1.999), exponents.to(layout.integer))


def test_the_layout_of_a_tensor():
    x = torch.tensor([2.0, -1.5])
    assert bits_of(x) == FLOAT32
    assert bits_of(x.double()) == FLOAT64
    assert bits_of_integer(x.view(torch.int32)) == FLOAT32
    assert bits_of_integer(x.double().view(torch.int64)) == FLOAT64
    assert FLOAT32.power(1) == int(x.view(torch.int32)[0])


@pytest.mark.parametrize(
    ("dtype", "outside"),
    [
        (torch.float16, np.float16),
        (torch.bfloat16, ml_dtypes.bfloat16),
        (torch.float32, np.float32),
    ],
)
def test_the_largest_value_held_is_the_last_before_infinity(dtype, outside):
    held = np.float64(largest_held(dtype))
    with np.errstate(over="ignore"):
        assert np.isfinite(np.float32(held).astype(outside))
        assert np.isinf(np.float32(np.nextafter(held, np.inf)).astype(outside))
