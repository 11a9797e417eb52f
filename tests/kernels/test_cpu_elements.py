"""Elements as the numbers that compiled loops are handed."""

import numpy as np
import pytest

from mpq.formats.format import NAMED_FLOATS
from mpq.formats.zoo import parse_format
from mpq.kernels import cpu_elements as elements
from mpq.kernels.cpu_elements import covers_element, float_numbers, rounding_numbers


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("bfp4", elements.Integers),
        ("int4a-g64", elements.Asymmetric),
        ("bmf8-e4m3", elements.Floats),
        ("bl8", elements.Powers),
        ("bmf5-e4m0", elements.Powers),
        ("nf4-g64", elements.Table),
    ],
)
def test_kinds(text, kind):
    assert type(rounding_numbers(parse_format(text).element)) is kind


def test_the_numbers_of_e2m1():
    found = rounding_numbers(parse_format("mxfp4").element)
    assert (found.high, found.shift, found.normal, found.least) == (6.0, 22, 1.0, 0.5)
    assert found.magic == np.float32(2.0**22)


def test_a_float_of_all_digits_rounds_nothing_off():
    found = float_numbers(NAMED_FLOATS["fp32"])
    assert (found.shift, found.normal, found.least) == (0, 2.0**-126, 2.0**-149)


def test_zeros_keep_their_sign_where_the_code_has_one():
    assert np.signbit(rounding_numbers(parse_format("bfp4").element).zero)
    assert not np.signbit(rounding_numbers(parse_format("int4").element).zero)


def test_a_bound_stands_in_for_the_largest_value():
    element = parse_format("fixed8.4").element
    assert (rounding_numbers(element).low, rounding_numbers(element).high) == (-128.0, 127.0)
    bounded = rounding_numbers(element, 100.0)
    assert (bounded.low, bounded.high) == (-100.0, 100.0)


def test_a_power_of_two_without_zero_never_underflows():
    assert rounding_numbers(parse_format("log4(zero=false)").element).underflow == -1
    found = rounding_numbers(parse_format("log4").element)  # from 2^-2 to 2^4
    assert found.underflow.view(np.float32) == 2.0**-3
    assert found.lowest.view(np.float32) == 2.0**-2


def test_tables_are_filled_up():
    found = rounding_numbers(parse_format("nf4").element)
    assert len(found.thresholds) == len(found.values) == elements.TABLE_ENTRIES
    assert found.thresholds[-1] == np.inf
    assert found.values[-1] == 1.0


@pytest.mark.parametrize("text", ["log9", "minifloat-e8m0", "dmf-e8m3"])
def test_elements_left_to_eager(text):
    assert not covers_element(parse_format(text).element)
    assert covers_element(parse_format("bf16").element)
