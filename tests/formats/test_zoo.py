"""The zoo: every text form there and back, and what is said of the others."""

import pytest

from mpq.errors import FormatError
from mpq.formats.block import Block
from mpq.formats.element import IntegerElement
from mpq.formats.format import Format
from mpq.formats.scale import SharedExponent
from mpq.formats.zoo import FAMILIES, examples, format_text, parse_format

CANONICAL = (
    *("fixed8.-2", "fixed4.12", "log6(bias=20)", "minifloat-e4m3(bias=11)", "minifloat-e8m23"),
    *("minifloat-e2m1-g32-sf32", "minifloat-e2m1-token", "dmf-e2m1", "bfp4-b32(scale_rule=ceil)"),
    *("bfp6(exponent=5,block=4x16)", "bfp6(exponent=5,block=4x16,scale_rule=mse)", "bfp8-token"),
    *("bfp8-tensor", "bl4(zero=false)", "bmf6-e3m2-b8", "mxint8(scale_rule=ceil)", "mxfp4-b16"),
    *("mxfp6-e3m2(block=2x32)", "mxfp5-e2m2", "nvfp4-b32", "nvfp4-token-b8", "nf4", "nf4-tensor"),
    *("fp8-e4m3-tensor(absmax=0.1)", "fp8-e5m2-g128", "fp16-token", "int4-tensor(absmax=1e-05)"),
    *("int4(block=2x8)", "int4a-g64-sf16", "int4-tensor-sf32", "int4f-g128-sf16", "int9f"),
    *("int4f(block=2x8)", "int8f-tensor-sf32(absmax=0.5)"),
)


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_texts_come_back(text):
    assert str(parse_format(text)) == text


@pytest.mark.parametrize("text", examples())
def test_every_example_comes_back(text):
    named = parse_format(text)
    assert parse_format(str(named)) == named
    same = {"int8-token": "int8", "int8f-token": "int8f"}
    assert str(named) == same.get(text, text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("int8-token", "int8"),  # one scale a row is what int8 means
        ("bfp4-b16", "bfp4"),
        ("bfp6(block=4x16,exponent=5)", "bfp6(exponent=5,block=4x16)"),
        ("bfp6( exponent=5 , block=4x16 )", "bfp6(exponent=5,block=4x16)"),
        ("bfp4(scale_rule=floor)", "bfp4"),
        ("mxfp4-e2m1", "mxfp4"),
        ("minifloat-e4m3(bias=7)", "minifloat-e4m3"),
        ("int8-tensor(absmax=2)", "int8-tensor(absmax=2.0)"),
    ],
)
def test_other_texts_of_the_same_format(text, canonical):
    assert str(parse_format(text)) == canonical


def test_every_head_belongs_to_one_family():
    for text in (*examples(), *CANONICAL):
        heads = [head for family in FAMILIES if (head := family.head(parse_format(text)))]
        assert heads, text


def test_a_format_that_is_built_by_hand_has_its_text():
    built = Format(
        element=IntegerElement(width=6, code="sign-magnitude"),
        scale=SharedExponent(width=5),
        block=Block(columns=16, rows=4),
    )
    assert str(built) == "bfp6(exponent=5,block=4x16)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bpf4", r"'bpf4' is no format: the nearest are bfp4"),
        ("mxfp4-e2m3", "says 4 bits, but a sign, 2 exponent bits and 3 mantissa bits are 6"),
        ("bmf8-e4m2", "says 8 bits"),
        ("bfp1", "from 2 to 24, not 1"),
        ("int4-b16", r"the option '-b16' does not apply to int4"),
        ("bfp4-g16", r"the option '-g16' does not apply to bfp4"),
        ("bfp4-b32-b16", "stands twice"),
        ("bfp4(exponent=9)", "from 2 to 8 bits, not 9"),
        ("bfp4(exponents=5)", "'exponents=5' is no key of a format: use one of exponent=5"),
        ("bfp4(block=0x4)", "at least 1 value along each axis, not 0"),
        ("bfp4-b0", "at least 1 value along each axis, not 0"),
        ("bfp4(scale_rule=best)", "floor, ceil, mse, not 'best'"),
        ("fixed8.4-g16", "does not apply to fixed8.4"),
        ("int4(zero=false)", "'zero=false' does not apply to int4"),
        ("bl8(bias=3)", "does not apply to bl8"),
        ("bfp4(absmax=3)", "does not apply to bfp4"),
        ("bfp4-sf32", "does not apply to bfp4"),
        ("int4(exponent=5)", "does not apply to int4"),
        ("int4(scale_rule=mse)", "does not apply to int4"),
        ("int4a-tensor(absmax=3)", "fixes no zero point"),
        ("int4fa", "is no format"),
        ("int1f", "from 2 to 24, not 1"),
        ("int4f-tensor(absmax=0)", "finite and above 0, not 0.0"),
        ("", "is no format"),
    ],
)
def test_what_is_no_format(text, message):
    with pytest.raises(FormatError, match=message):
        parse_format(text)


def test_what_no_family_names():
    nameless = Format(element=parse_format("nf4").element, scale=parse_format("int4").scale,
                      block=Block(columns=3))  # fmt: skip
    assert format_text(nameless) == "nf4-g3"
    other = type(nameless.element)(name="mine", values=(-1.0, 0.0, 1.0))
    with pytest.raises(FormatError, match=r"no family names .* declare one in"):
        format_text(Format(element=other, scale=nameless.scale, block=nameless.block))
