"""Rounding: nearest against a brute-force search, ties to the even code, in both precisions."""

import pytest
import torch

from mpq.formats.element import FloatElement, IntegerElement, LogElement, reach
from mpq.formats.format import NAMED_FLOATS
from mpq.formats.zoo import NF4
from mpq.kernels.codes import codes_of, values_of
from mpq.kernels.rounding import fits_float32, round_to_element, truncate_to_element

ELEMENTS = [
    IntegerElement(width=4),
    IntegerElement(width=4, code="two's complement"),
    IntegerElement(width=4, code="sign-magnitude"),
    FloatElement(exponent=4, mantissa=3),
    FloatElement(exponent=2, mantissa=1),
    FloatElement(exponent=3, mantissa=0),
    FloatElement(exponent=1, mantissa=2),
    FloatElement(exponent=3, mantissa=2, implicit_one=False),
    FloatElement(exponent=3, mantissa=1, implicit_one=False),
    NAMED_FLOATS["fp8-e5m2"],
    LogElement(width=4),
    LogElement(width=4, zero=False),
    NF4,
]


def representable(element) -> torch.Tensor:
    values = values_of(torch.arange(2**element.width), element)
    return values[values.abs() <= reach(element)].unique()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_nearest_ties_to_even(element, dtype):
    values = representable(element)
    if element == IntegerElement(width=4):
        values = values[values > -8]
    middles = ((values[1:] + values[:-1]) / 2).to(dtype).double()
    points = torch.cat([values, middles, middles * 1.01, middles * 0.99, values * 3])
    got = round_to_element(points.to(dtype).clone(), element).double()
    points = points.to(dtype).double()
    distances = (points[:, None] - values).abs()
    assert torch.equal((got - points).abs(), distances.amin(1))
    is_tie = (distances == distances.amin(1, keepdim=True)).sum(1) == 2
    codes = codes_of(got[is_tie], element)
    if not (isinstance(element, FloatElement) and not element.implicit_one):
        assert not (codes & 1).any()


@pytest.mark.parametrize("zero_point", [0.0, 3.0, 8.0])
def test_ties_of_an_asymmetric_integer_go_to_the_even_stored_code(zero_point):
    element = IntegerElement(width=4, code="asymmetric")
    offset = torch.tensor([[zero_point]])
    got = round_to_element(torch.arange(-20.0, 20.0)[None] + 0.5, element, offset) + offset
    assert ((got % 2 == 0) | (got == 15)).all()
    assert got.amin() == 0
    just_below = torch.tensor([[0.49999997]])
    assert round_to_element(just_below, element, offset).item() == 0  # no double rounding


def test_an_asymmetric_integer_needs_its_zero_point():
    with pytest.raises(TypeError, match="rounded with its zero point"):
        round_to_element(torch.zeros(1, 1), IntegerElement(width=4, code="asymmetric"))


@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_truncation_is_the_largest_value_at_or_below(element):
    values = representable(element)
    values = values[values > 0]
    bounds = torch.cat([values, values * 1.1, values * 1e6])
    got = truncate_to_element(bounds, element)
    for bound, value in zip(bounds.tolist(), got.tolist(), strict=True):
        below = values[values <= bound]
        assert value == (below.max().item() if len(below) else 0.0)


def test_a_table_has_other_values_below_zero():
    bounds = torch.tensor([0.7], dtype=torch.float64)
    assert truncate_to_element(bounds, NF4).item() == pytest.approx(0.5626, abs=1e-4)
    assert truncate_to_element(bounds, NF4, negative=True).item() == pytest.approx(
        0.69619, abs=1e-4
    )


def test_the_lowest_code_of_twos_complement_reaches_further_than_the_largest():
    element = IntegerElement(width=4, code="two's complement")
    bounds = torch.tensor([100.0, 8.0, 7.9, 7.0], dtype=torch.float64)
    assert truncate_to_element(bounds, element).tolist() == [7, 7, 7, 7]
    assert truncate_to_element(bounds, element, negative=True).tolist() == [8, 8, 7, 7]


def test_which_elements_float32_can_round():
    assert fits_float32(NAMED_FLOATS["fp16"])
    assert fits_float32(LogElement(width=8))
    assert not fits_float32(LogElement(width=9))
    assert not fits_float32(NAMED_FLOATS["bf16"])
