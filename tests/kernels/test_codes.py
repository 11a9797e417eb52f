"""Codes: every code of every small element is a value, and that value's code."""

import ml_dtypes
import numpy as np
import pytest
import torch

from mpq.formats.element import FloatElement, IntegerElement, LogElement
from mpq.formats.format import NAMED_FLOATS
from mpq.formats.zoo import NF4
from mpq.kernels.codes import codes_of, values_of

ELEMENTS = [
    IntegerElement(width=4),
    IntegerElement(width=8, code="two's complement"),
    IntegerElement(width=5, code="sign-magnitude"),
    FloatElement(exponent=4, mantissa=3),
    FloatElement(exponent=2, mantissa=1),
    FloatElement(exponent=3, mantissa=0),
    FloatElement(exponent=8, mantissa=1),
    LogElement(width=4),
    LogElement(width=8, zero=False),
    NF4,
]


@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_every_code_there_and_back(element):
    codes = torch.arange(2**element.width)
    assert torch.equal(codes_of(values_of(codes, element), element), codes)


@pytest.mark.parametrize("size", [(4, 3), (3, 2), (2, 1), (3, 1)])
def test_a_denormalised_value_takes_its_normalised_code(size):
    element = FloatElement(exponent=size[0], mantissa=size[1], implicit_one=False)
    values = values_of(torch.arange(2**element.width), element)
    codes = codes_of(values, element)
    assert torch.equal(values_of(codes, element), values)
    fields, digits = codes >> size[1] & 2 ** size[0] - 1, codes & 2 ** size[1] - 1
    assert ((fields == 0) | (digits >= 2 ** (size[1] - 1))).all()


@pytest.mark.parametrize(
    ("element", "outside"),
    [
        (NAMED_FLOATS["fp8-e4m3"], ml_dtypes.float8_e4m3fn),
        (NAMED_FLOATS["fp8-e5m2"], ml_dtypes.float8_e5m2),
    ],
)
def test_codes_are_the_bits_of_ml_dtypes(element, outside):
    theirs = np.arange(256, dtype=np.uint8).view(outside).astype(np.float64)
    finite = torch.from_numpy(np.isfinite(theirs))
    ours = values_of(torch.arange(256), element)
    assert torch.equal(ours[finite], torch.from_numpy(theirs)[finite])
    assert torch.equal(codes_of(ours[finite], element), torch.arange(256)[finite])


def test_an_asymmetric_code_is_a_distance_from_the_zero_point():
    element = IntegerElement(width=4, code="asymmetric")
    zero_point = torch.tensor([[3.0]])
    codes = codes_of(torch.tensor([[-3.0, 0.0, 12.0]]), element, zero_point)
    assert codes.tolist() == [[0, 3, 15]]
    assert values_of(codes, element, zero_point).tolist() == [[-3.0, 0.0, 12.0]]


def test_an_asymmetric_code_needs_its_zero_point():
    element = IntegerElement(width=4, code="asymmetric")
    with pytest.raises(TypeError, match="with its zero point"):
        codes_of(torch.zeros(1), element)
    with pytest.raises(TypeError, match="with its zero point"):
        values_of(torch.zeros(1, dtype=torch.long), element)
