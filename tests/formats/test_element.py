"""Elements: widths, ranges, and what is refused."""

import ml_dtypes
import pytest

from mpq.errors import FormatError
from mpq.formats.element import (
    FloatElement,
    IntegerElement,
    LogElement,
    TableElement,
    has_negative_zero,
    reach,
)
from mpq.formats.format import NAMED_FLOATS

OUTSIDE = {
    "fp8-e4m3": ml_dtypes.float8_e4m3fn,
    "fp8-e5m2": ml_dtypes.float8_e5m2,
    "bf16": ml_dtypes.bfloat16,
}
MX = {
    (3, 2): ml_dtypes.float6_e3m2fn,
    (2, 3): ml_dtypes.float6_e2m3fn,
    (2, 1): ml_dtypes.float4_e2m1fn,
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_named_floats_reach_what_ml_dtypes_says(name):
    element, outside = NAMED_FLOATS[name], ml_dtypes.finfo(OUTSIDE[name])
    assert element.width == outside.bits
    assert element.largest == float(outside.max)
    assert 2.0**element.min_exponent == float(outside.smallest_normal)
    assert 2.0 ** (element.min_exponent - element.fraction) == float(outside.smallest_subnormal)


@pytest.mark.parametrize("size", MX)
def test_mx_elements_reach_what_ml_dtypes_says(size):
    element, outside = FloatElement(exponent=size[0], mantissa=size[1]), ml_dtypes.finfo(MX[size])
    assert element.largest == float(outside.max)
    assert 2.0 ** (element.min_exponent - element.fraction) == float(outside.smallest_subnormal)


def test_ranges():
    assert FloatElement(exponent=4, mantissa=3).largest == 480  # no code is spent on NaN
    assert FloatElement(exponent=4, mantissa=3, implicit_one=False).largest == 224
    assert IntegerElement(width=4).largest == 7
    assert IntegerElement(width=4, code="asymmetric").largest == 15
    assert LogElement(width=8).largest == 2.0**64
    assert LogElement(width=8).min_exponent == -62
    assert LogElement(width=8, zero=False).min_exponent == -63


def test_only_twos_complement_reaches_beyond_its_largest():
    assert reach(IntegerElement(width=4, code="two's complement")) == 8
    assert reach(IntegerElement(width=4)) == 7
    assert reach(IntegerElement(width=4, code="asymmetric")) == 15
    assert reach(FloatElement(exponent=4, mantissa=3)) == 480
    assert reach(TableElement(name="t", values=(-2.0, 0.0, 1.0))) == 2


def test_a_default_bias_is_no_bias():
    assert FloatElement(exponent=4, mantissa=3, bias=7) == FloatElement(exponent=4, mantissa=3)
    assert LogElement(width=8, bias=63) == LogElement(width=8)
    assert FloatElement(exponent=4, mantissa=3, bias=9).largest == 120


def test_which_codes_have_a_sign_of_their_own():
    assert has_negative_zero(IntegerElement(width=4, code="sign-magnitude"))
    assert has_negative_zero(LogElement(width=4))
    assert not has_negative_zero(IntegerElement(width=4))
    assert not has_negative_zero(TableElement(name="t", values=(-1.0, 0.0, 1.0)))


def test_a_table_has_the_width_of_its_index():
    assert TableElement(name="t", values=(-1.0, 0.0, 0.5, 1.0)).width == 2


@pytest.mark.parametrize("width", [1, 25])
def test_impossible_integer_widths(width):
    with pytest.raises(FormatError, match=f"from 2 to 24, not {width}"):
        IntegerElement(width=width)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"exponent": 9, "mantissa": 3}, "exponent width .* from 1 to 8, not 9"),
        ({"exponent": 4, "mantissa": 24}, "mantissa width .* from 0 to 23, not 24"),
        ({"exponent": 4, "mantissa": 0, "implicit_one": False}, "from 1 to 23, not 0"),
        ({"exponent": 4, "mantissa": 0, "specials": "nan"}, "NaN code needs a mantissa"),
        ({"exponent": 4, "mantissa": 3, "bias": 200}, "beyond float32 .* another bias"),
    ],
)
def test_impossible_floats(sizes, message):
    with pytest.raises(FormatError, match=message):
        FloatElement(**sizes)


def test_impossible_logs():
    with pytest.raises(FormatError, match="from 2 to 9, not 10"):
        LogElement(width=10)
    with pytest.raises(FormatError, match="beyond float32"):
        LogElement(width=8, bias=-100)


@pytest.mark.parametrize("values", [(0.0, 1.0, 0.5), (-1.0, 1.0), (0.0, 0.0, 1.0)])
def test_a_table_rises_and_holds_zero(values):
    with pytest.raises(FormatError, match="must rise strictly and hold 0"):
        TableElement(name="t", values=values)
