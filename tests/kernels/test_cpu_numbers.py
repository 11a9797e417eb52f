"""Formats as numbers: what compiled loops are handed."""

import numpy as np
import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels import cpu_numbers as numbers
from mpq.kernels.cpu_numbers import covers_format, numbers_of, rounding_numbers, scaling_numbers


@pytest.mark.parametrize(
    ("text", "kind", "scale"),
    [
        ("bfp4", numbers.INTEGER, numbers.SHARED),
        ("int4a-g64", numbers.ASYMMETRIC, numbers.SPANNING),
        ("int4-g128", numbers.INTEGER, numbers.SYMMETRIC),
        ("bmf8-e4m3", numbers.FLOAT, numbers.SHARED),
        ("bl8", numbers.POWER, numbers.SHARED),
        ("bmf5-e4m0", numbers.POWER, numbers.SHARED),
        ("nf4-g64", numbers.TABLE, numbers.SYMMETRIC),
        ("nvfp4", numbers.FLOAT, numbers.NESTED),
        ("int8-tensor", numbers.INTEGER, numbers.GIVEN),
    ],
)
def test_kinds(text, kind, scale):
    found = numbers_of(parse_format(text), torch.float32)
    assert (found.element.kind, found.scale.kind) == (kind, scale)


def test_the_numbers_of_e2m1():
    found = rounding_numbers(parse_format("mxfp4").element)
    assert (found.low, found.high, found.shift, found.normal) == (-6.0, 6.0, 22, 1.0)
    assert found.magic == np.float32(2.0**22)
    assert np.signbit(found.zero)


def test_a_bound_stands_in_for_the_largest_value():
    element = parse_format("fixed8.4").element
    assert (rounding_numbers(element).low, rounding_numbers(element).high) == (-128.0, 127.0)
    bounded = rounding_numbers(element, 100.0)
    assert (bounded.low, bounded.high) == (-100.0, 100.0)


def test_tables_are_filled_up():
    found = rounding_numbers(parse_format("nf4").element)
    assert len(found.thresholds) == len(found.values) == 16
    assert found.thresholds[-1] == np.inf
    assert found.values[-1] == 1.0


def test_shared_exponents_say_where_float32_is_safe():
    found = scaling_numbers(parse_format("bfp4"), torch.float16)
    assert np.int32(found.lowest_safe).view(np.float32) == 2.0**-98
    assert np.int32(found.highest_safe).view(np.float32) == 2.0**90
    assert (found.lowest, found.highest, found.offset) == (-127, 128, 2)
    assert found.limit == 65504.0


@pytest.mark.parametrize(
    "text",
    ["log9", "bfp4(scale_rule=mse)", "bfp6(block=4x16)", "minifloat-e8m0", "dmf-e8m3"],
)
def test_formats_left_to_eager(text):
    assert not covers_format(parse_format(text))
