"""Single values in compiled code, against torch."""

import pytest
import torch

from mpq.kernels.choice import has_compiler

if not has_compiler("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

from mpq.kernels.cpu_loops import (
    at_least,
    at_most,
    clamped,
    from_half,
    ordered,
    round_bits,
    to_bfloat16,
    to_half,
)


@pytest.mark.parametrize("bits", [0x0000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, -0x8000])
def test_a_float16_widens(bits):
    want = torch.tensor(bits, dtype=torch.int16).view(torch.float16).float()
    assert from_half(bits) == float(want)


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 1.0, -2.5, 65504.0, 65519.0, 65520.0, 1e9, 6e-8, 2.0**-25, 2.0**-24 * 1.5, 6.1e-5],
)
def test_a_float32_narrows(value):
    x = torch.tensor(value, dtype=torch.float32)
    halves = x.half().view(torch.int16)
    assert to_half(x.numpy()[()]) == int(halves) & 0xFFFF
    assert to_bfloat16(x.numpy()[()]) == int(x.bfloat16().view(torch.int16)) & 0xFFFF


def test_bounds():
    assert at_most(3.0, 2.0) == at_least(1.0, 2.0) == clamped(9.0, 0.0, 2.0) == 2.0


def test_bits_round_to_even():
    assert [round_bits(bits, 2) for bits in (1, 2, 3, 5, 6, 7)] == [0, 0, 4, 4, 8, 8]
    assert round_bits(7, 0) == 7


def test_ordered_whole_numbers_follow_the_floats():
    values = torch.tensor([-torch.inf, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, torch.inf]).numpy()
    keys = [ordered(value) for value in values]
    assert keys == sorted(keys)
