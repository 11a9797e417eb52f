"""Formats: bits, facts, and parts that do not go together."""

import pickle
import re

import pytest

from mpq.errors import FormatError
from mpq.formats.block import ROW, TENSOR, Block
from mpq.formats.element import FloatElement, IntegerElement, LogElement
from mpq.formats.format import Format
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent, StaticScale
from mpq.formats.zoo import examples, parse_format

SIGN_MAGNITUDE = IntegerElement(width=4, code="sign-magnitude")


@pytest.mark.parametrize(
    ("text", "shape", "bits"),
    [
        ("bfp6", (4, 32), 4 * 32 * 6 + 8 * 8),
        ("bfp6", (4, 33), 4 * 33 * 6 + 12 * 8),  # a tail of one value has its exponent
        ("bfp6(exponent=5,block=4x16)", (4, 33), 4 * 33 * 6 + 3 * 5),
        ("int4", (4, 33), 4 * 33 * 4 + 4 * 16),
        ("int4-g16-sf32", (4, 33), 4 * 33 * 4 + 12 * 32),
        ("int4a-g16", (4, 33), 4 * 33 * 4 + 12 * (16 + 4)),
        ("int4f-g16", (4, 33), 4 * 33 * 4 + 12 * 16),  # the sign lies in the scale
        ("int8-tensor", (4, 33), 4 * 33 * 8 + 16),
        ("int8-tensor(absmax=3.5)", (4, 33), 4 * 33 * 8),  # the plan holds the number
        ("nvfp4", (4, 33), 4 * 33 * 4 + 12 * 8 + 32),
        ("nvfp4-token", (4, 33), 4 * 33 * 4 + 12 * 8 + 4 * 32),
        ("nvfp4(absmax=3.5)", (4, 33), 4 * 33 * 4 + 12 * 8),
        ("mxfp4", (4, 33), 4 * 33 * 4 + 8 * 8),
        ("fixed8.4", (4, 33), 4 * 33 * 8),
        ("fp32", (4, 33), 4 * 33 * 32),
        ("bfp6", (4, 0), 0),
        ("nvfp4", (0,), 0),
        ("bfp6", (), 6 + 8),
    ],
)
def test_bits(text, shape, bits):
    assert parse_format(text).bits(shape) == bits


def test_bits_follow_the_axis():
    assert parse_format("bfp6").bits((33, 4), axis=0) == parse_format("bfp6").bits((4, 33))
    with pytest.raises(FormatError, match="from -2 to 1"):
        parse_format("fp32").bits((3, 4), axis=2)


@pytest.mark.parametrize(
    ("text", "bits"),
    [("bfp4", 4.5), ("mxfp4", 4.25), ("int4-g128", 4.125), ("int4a-g64", 4.3125), ("int4", 4.0)],
)
def test_bits_a_value(text, bits):
    assert parse_format(text).bits_per_value == bits


def test_what_looks_beyond_a_token():
    with_tensor_scale = {e for e in examples() if parse_format(e).has_tensor_scale}
    assert with_tensor_scale == {"int8-tensor", "int8f-tensor", "nvfp4"}
    assert parse_format("fp8-e4m3-tensor").has_tensor_scale
    assert parse_format("bfp8-tensor").has_tensor_scale
    assert {e for e in examples() if parse_format(e).has_2d_block} == {
        "bfp6(exponent=5,block=4x16)"
    }
    assert {e for e in examples() if parse_format(e).is_identity} == {"fp32"}


def test_whose_scale_has_a_sign():
    signed = {e for e in examples() if parse_format(e).has_signed_scale}
    # A calibrated absmax has no sign, so that scale has none.
    assert signed == {e for e in examples() if re.match(r"int\d+f", e) and "absmax" not in e}
    assert "int8f-tensor(absmax=3.5)" in examples()


@pytest.mark.parametrize("text", examples())
def test_a_format_is_a_value(text):
    named = parse_format(text)
    assert pickle.loads(pickle.dumps(named)) == named
    assert hash(named) == hash(parse_format(str(named)))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"element": SIGN_MAGNITUDE}, "integers and tables need a scale"),
        ({"element": SIGN_MAGNITUDE, "scale": SharedExponent()}, "a block goes with"),
        ({"element": LogElement(width=4), "block": ROW}, "a block goes with"),
        ({"element": SIGN_MAGNITUDE, "scale": StaticScale(fraction=2)}, "two's-complement"),
        ({"element": SIGN_MAGNITUDE, "scale": FloatScale(), "block": ROW}, "a float scale goes"),
        (
            {"element": IntegerElement(width=4), "scale": FloatScale(absmax=1.0), "block": ROW},
            "belongs to the whole tensor",
        ),
        (
            {
                "element": IntegerElement(width=4),
                "scale": FloatScale(zero_point=True),
                "block": ROW,
            },
            "goes with an asymmetric integer",
        ),
        (
            {
                "element": IntegerElement(width=4, code="asymmetric"),
                "scale": FloatScale(),
                "block": ROW,
            },
            "needs a zero point",
        ),
        (
            {
                "element": IntegerElement(width=4),
                "scale": SharedExponent(),
                "block": TENSOR,
            },
            "a shared exponent goes with",
        ),
        (
            {
                "element": FloatElement(exponent=4, mantissa=3),
                "scale": SharedExponent(microscaling=True),
                "block": ROW,
            },
            "the element's specials are nan",
        ),
        (
            {
                "element": LogElement(width=4, zero=False),
                "scale": SharedExponent(rule="mse"),
                "block": ROW,
            },
            "the mse rule needs a zero code",
        ),
        (
            {"element": FloatElement(exponent=3, mantissa=2, specials="inf and nan")},
            "only fp8-e4m3, .* have codes for infinities",
        ),
        (
            {
                "element": SIGN_MAGNITUDE,
                "scale": NestedScale(),
                "block": Block(columns=16),
            },
            "a nested scale goes with e2m1",
        ),
        (
            {
                "element": FloatElement(exponent=2, mantissa=1),
                "scale": NestedScale(),
                "block": ROW,
            },
            "one row and some columns",
        ),
    ],
)
def test_parts_that_do_not_go_together(parts, message):
    with pytest.raises(FormatError, match=f"{message}.*use a text form"):
        Format(**parts)
