"""What kernels are told of scales."""

import struct

import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.triton_scales import (
    alone_facts,
    float_scale_facts,
    power_facts,
    shared_power_facts,
    stored_facts,
)


def bits(value: float) -> int:
    return struct.unpack("i", struct.pack("f", value))[0]


def test_a_shared_exponent_makes_the_unit_from_the_peak():
    named = parse_format("bfp4")
    facts = power_facts(named.element, named.scale).single
    assert bits(8.0) - facts.down == bits(2.0)  # 7 * 2 = 14 of up to 16
    assert facts.turn - bits(2.0) == bits(0.5)
    assert facts.carry == 0


@pytest.mark.parametrize(
    ("text", "exponents", "is_wide"),
    [("bfp4", 1, False), ("bfp4(scale_rule=mse)", 3, True), ("bl9", 1, True), ("bl8", 1, False)],
)
def test_what_is_computed_in_float64(text, exponents, is_wide):
    named = parse_format(text)
    facts = power_facts(named.element, named.scale)
    assert len(facts.double) == exponents
    assert facts.always_wide == is_wide


def test_where_peaks_are_read():
    named = parse_format("bfp4-token")
    for per_row, expected in ((None, (False, 0)), (1, (True, 1)), (0, (True, 0))):
        facts = shared_power_facts(named.element, named.scale, torch.float32, per_row)
        assert (facts.is_given, facts.per_row) == expected


@pytest.mark.parametrize(
    ("text", "largest", "code"),
    [("int4", 3.3895313892515355e38, 1 << 16), ("int4-sf32", 3.4028234663852886e38, 1)],
)
def test_stored_scales(text, largest, code):
    named = parse_format(text)
    facts = stored_facts(named.element, named.scale)
    assert (facts.largest, facts.divisor, facts.code) == (largest, 7.0, code)
    assert not facts.is_signed
    full = parse_format(text.replace("int4", "int4f"))
    facts = stored_facts(full.element, full.scale)
    assert (facts.largest, facts.divisor, facts.is_signed) == (largest, 8.0, True)


def test_a_nested_scale_has_the_divisor_of_its_element():
    named = parse_format("nvfp4")
    facts = float_scale_facts(named.element, named.scale, torch.float32, "nested", 0)
    assert facts.stored.divisor == 6.0
    assert facts.block_scale.largest == 448.0


def test_elements_alone():
    named = parse_format("fixed8.4")
    facts = alone_facts(named.element, named.scale, torch.float32)
    assert (facts.unit, facts.inverse, facts.rounding.wide) == (1 / 16, 16.0, False)
    wide = parse_format("minifloat-e8m3")
    assert alone_facts(wide.element, wide.scale, torch.float32).rounding.wide
    assert not alone_facts(parse_format("bf16").element, None, torch.float32).rounding.wide
    held = alone_facts(parse_format("bf16").element, None, torch.float16)
    assert held.rounding.largest == 65280.0
