"""What the loops are told of an encoded tensor: a value for each code, a unit for each block."""

import numpy as np
import pytest
import torch

from mpq.formats.element import FloatElement, IntegerElement, TableElement
from mpq.formats.zoo import NF4, parse_format
from mpq.kernels.cpu_stored import (
    WORD,
    Pairs,
    Powers,
    Scales,
    ScalesAndZeros,
    element_codes,
    element_values,
    products_of,
    result_codes,
    units_of,
)
from mpq.kernels.encoded import encode_blocks


def encoded_as(text: str, dtype: torch.dtype = torch.float32):
    return encode_blocks(torch.arange(-8.0, 8.0).to(dtype), parse_format(text), -1)


def test_every_code_has_its_value():
    whole = [0, 1, 2, 3, -3, -3, -2, -1]
    assert element_values(IntegerElement(width=3)).tolist() == whole
    signed = element_values(IntegerElement(width=3, code="sign-magnitude"))
    assert signed.tolist() == [0, 1, 2, 3, 0, -1, -2, -3]
    assert np.signbit(signed).tolist() == [False] * 4 + [True] * 4
    assert element_values(IntegerElement(width=3, code="asymmetric")).tolist() == [*range(8)]
    assert element_values(NF4).tolist() == list(NF4.values)


def test_codes_that_are_never_written_stand_for_the_largest_value():
    e4m3 = FloatElement(exponent=4, mantissa=3, specials="nan")
    assert element_values(e4m3)[0x7F] == 448
    assert element_values(e4m3, saturates=False)[0x7F] == 480
    short = TableElement(name="three", values=(-1.0, 0.0, 0.5))
    assert element_values(short).tolist() == [-1.0, 0.0, 0.5, 0.5]


def test_few_codes_are_padded_to_a_word():
    encoded = encode_blocks(torch.ones(3), parse_format("int4"), -1)
    codes = element_codes(encoded)
    assert (len(encoded.codes), len(codes.packed), codes.width) == (2, WORD, 4)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("bfp4", Powers), ("int4", Scales), ("int4a", ScalesAndZeros), ("nvfp4", Pairs)],
)
def test_each_kind_of_scale_has_its_kind_of_units(text, kind):
    assert type(units_of(encoded_as(text))) is kind


def test_units_are_those_by_which_eager_multiplies():
    powers = units_of(encoded_as("bfp4"))
    assert powers.codes.values[powers.codes.packed[0]] == 2.0
    assert units_of(encoded_as("int8-g16-sf32")).stored.tolist() == [np.float32(8 / 127)]
    spanned = units_of(encoded_as("int4a"))
    assert (spanned.stored.tolist(), spanned.zeros.packed[0]) == ([0x3F80], 8)  # 1.0, bfloat16


@pytest.mark.parametrize(
    "text", ["fixed8.4", "log8", "int8-tensor", "bfp4-tensor", "int4a-tensor"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_blocks_codes_stand_for_values_of_the_result(text, dtype):
    codes = result_codes(encoded_as(text, dtype), dtype)
    assert codes.values.shape == (2**codes.width,)
    assert codes.values.dtype == (np.float32 if dtype == torch.float32 else np.uint16)


@pytest.mark.parametrize(
    ("text", "largest", "is_signed"),
    [("int4f", 8.0, False), ("nf4", 1.0, False), ("nvfp4", 6.0, True), ("mxint8", 127.0, True)],
)
def test_products_are_bounded_by_the_table_and_by_the_dtype(text, largest, is_signed):
    products = products_of(encoded_as(text, torch.float32), torch.float16)
    assert products == (largest, 65504.0, 0.0)
    assert np.signbit(products.zero) == is_signed
