"""Scales as the numbers that compiled loops are handed, and what they call ordinary."""

import numpy as np
import pytest
import torch

from mpq.formats.element import reach
from mpq.formats.zoo import parse_format
from mpq.kernels import cpu_scales as scales
from mpq.kernels.cpu_scales import float_scale_numbers, most_unit, nested_numbers, shared_numbers


def shared(text: str, dtype: torch.dtype = torch.float32) -> scales.Shared:
    named = parse_format(text)
    return shared_numbers(named.element, named.scale, dtype)


def value(bits: np.int32) -> float:
    return float(bits.view(np.float32))


def test_shared_exponents_say_where_float32_is_safe():
    found = shared("bfp4")
    assert value(found.least) == 2.0**-98
    assert value(found.most) == 2.0**90
    assert value(found.lowest) == 2.0**-98  # what lies below is not ordinary
    assert value(found.highest) == 2.0**127
    assert (found.down, found.carry, found.zero) == (2 << 23, 0, 0)


def test_shared_exponents_say_what_the_dtype_holds():
    # 7 * 2^13 is held by float16, 7 * 2^14 is not: from 2^16 on the unit would be 2^14.
    assert value(shared("bfp4", torch.float16).most) == float(np.nextafter(np.float32(2**16), 0))
    assert value(shared("bfp4(exponent=4)", torch.float16).most) == 2.0**90  # its unit ends at 2^6


@pytest.mark.parametrize(
    ("text", "carry"), [("bfp4(scale_rule=ceil)", 2**23 - 1), ("bl8", 2**22 - 1), ("bfp4", 0)]
)
def test_rules_carry_into_the_next_binade(text, carry):
    assert shared(text).carry == carry


def test_zeros_matter_where_no_code_is_zero():
    assert shared("bl4(zero=false)").zero == -1


def test_float_scales_are_stored_as_floats():
    named = parse_format("int4-g32")
    found = float_scale_numbers(named.element, named.scale, torch.float32)
    assert (found.largest, found.stored.shift) == (7.0, 16)
    named = parse_format("int8a-g32-sf16")
    found = float_scale_numbers(named.element, named.scale, torch.float32)
    assert (found.largest, found.stored.high, found.spans) == (255.0, 65504.0, True)
    named = parse_format("int4f-g32")
    found = float_scale_numbers(named.element, named.scale, torch.float32)
    assert (type(found), found.lowest, found.stored.shift) == (scales.Signed, -8.0, 16)
    named = parse_format("int12a-g16-sf16")
    assert not float_scale_numbers(named.element, named.scale, torch.float32).spans


def test_a_nested_scale_is_an_e4m3_under_what_is_given():
    above = np.ones(3, dtype=np.float32)
    found = nested_numbers(parse_format("nvfp4").element, above, torch.float32)
    assert (found.largest, found.stored.high) == (6.0, 448.0)
    assert found.above is above


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", ["int4", "int4f", "int8", "nf4", "nvfp4", "int24-g16-sf32"])
def test_the_most_unit_is_the_last_of_which_the_dtype_holds_every_multiple(text, dtype):
    element = parse_format(text).element
    unit, limit = most_unit(element, dtype), torch.finfo(dtype).max
    assert float(unit) * reach(element) <= limit
    above = np.nextafter(unit, np.float32(np.inf))
    assert np.isinf(above) or float(above) * reach(element) > limit
