"""Scales: what each rule chooses for a block."""

import math

import numpy as np
import pytest
import torch

from mpq.formats.scale import NestedScale
from mpq.formats.zoo import parse_format
from mpq.kernels.scaling import (
    _sum_in_pairs,
    choose_scales,
    divisor,
    largest_magnitudes,
    scale_above,
)


def unit(values: list[float], text: str) -> float:
    scales = choose_scales(torch.tensor([values]), parse_format(text), torch.float32)
    return float(scales.unit)


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("bfp4", [1.0], 0.25),
        ("bfp4", [1.99], 0.25),
        ("bfp4(scale_rule=ceil)", [1.0], 0.25),
        ("bfp4(scale_rule=ceil)", [1.01], 0.5),
        ("bfp4(scale_rule=mse)", [1.99, 1.99], 0.5),
        ("bfp4(scale_rule=mse)", [1.0, 0.1, 0.1, 0.1], 0.125),
        ("bfp4(scale_rule=mse)", [1.0, 0.5], 0.25),  # exact already: the floor's stays
        ("bmf8-e4m3", [256.0], 1.0),
        ("mxfp8-e4m3", [448.0], 1.0),
        ("bl4", [16.0], 1.0),
        ("bl4", [24.0], 1.0),  # 1.5 * 16 is rounded down
        ("bl4", [24.1], 2.0),
        ("mxint8", [1.0], 2.0**-6),
        ("int4-sf32", [7.0], 1.0),
        ("int8", [1.0], 0.00787353515625),  # 1/127 in bfloat16
        ("int4a-sf32", [-5.0, 10.0], 1.0),
        ("int4a-sf32", [30.0, 15.0], 2.0),  # the range holds 0
        ("int4-sf16", [1e9], 65504.0),
        ("int8-tensor-sf32(absmax=127)", [3.0], 1.0),
        ("int4f", [-8.0, 7.9], 1.0),
        ("int4f", [-7.9, 8.0], -1.0),
        ("int4f", [8.0, -8.0], 1.0),  # the negative one of the two has the lowest code
        ("int4f", [3.0, 8.0], -1.0),  # all of one sign
        ("int4f", [-3.0, -8.0], 1.0),
        ("int2f-sf32", [3.0], -1.5),
        ("int4f-sf16", [1e9], -65504.0),
        ("int4f-sf16", [-1e9], 65504.0),
        ("int4f-tensor-sf32(absmax=8)", [300.0], 1.0),  # calibrated: above 0
    ],
)
def test_units(text, values, expected):
    assert unit(values, text) == expected


def test_a_block_that_is_not_finite_has_no_unit():
    for text in ("bfp4", "int4", "int4a", "int4f", "bl8"):
        assert math.isnan(unit([1.0, math.inf], text))
        assert math.isnan(unit([1.0, -math.inf], text))
        assert math.isnan(unit([1.0, math.nan], text))


def test_the_largest_magnitude_keeps_faults():
    x = torch.tensor([[1.0, -3.0], [math.nan, 1.0], [-math.inf, 1.0], [-0.0, 0.0]])
    peaks = largest_magnitudes(x).flatten()
    assert peaks[0] == 3
    assert peaks[1].isnan()
    assert peaks[2] == math.inf
    assert peaks[3] == 0


def test_an_asymmetric_scale_lets_the_codes_span_the_range():
    # 2.656 / 3 rounds up to a bfloat16 under which both ends are one step from zero.
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    scales = choose_scales(x, parse_format("int4a-g16"), torch.float32)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    first = (low / scales.unit + scales.zero_point).round().clamp(0, 15)
    last = (high / scales.unit + scales.zero_point).round().clamp(0, 15)
    assert (first == 0).all()
    assert (last == 15).all()


@pytest.mark.parametrize("values", [[0.0, 0.0], [-0.0, -0.0], [1e-9, 0.0], [-1e-9, 1e-9]])
def test_a_signed_scale_that_is_zero_has_no_sign(values):
    found = choose_scales(torch.tensor([values]), parse_format("int4f-sf16"), torch.float32)
    assert found.stored.item() == 0
    assert not found.stored.signbit()


def test_signed_scales_are_those_of_llama_cpp():
    # Q4_0 (ggml-quants.c): d = max / -8 of the value with the largest magnitude, stored in fp16.
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    farthest = np.take_along_axis(x.numpy(), np.abs(x.numpy()).argmax(1)[:, None], axis=1)
    found = choose_scales(x, parse_format("int4f-g32-sf16"), torch.float32)
    assert np.array_equal(found.stored.numpy(), (farthest / np.float32(-8)).astype(np.float16))


def test_the_scale_above_block_scales():
    peaks = torch.tensor([[2688.0], [math.inf]])
    assert scale_above(peaks, NestedScale()).flatten().tolist() == [1.0, 0.0]
    assert scale_above(peaks, NestedScale(absmax=2688.0)).flatten().tolist() == [1.0, 1.0]


def test_a_unit_that_underflowed_divides_by_one():
    assert divisor(torch.tensor([0.0, 2.0])).tolist() == [1.0, 2.0]


def test_formats_that_choose_no_scale():
    with pytest.raises(TypeError, match="no scale that is chosen for each block"):
        choose_scales(torch.zeros(1, 4), parse_format("log8"), torch.float32)


def test_errors_are_summed_in_pairs_of_neighbours():
    # Another order loses the ones beside 2^53: every path must keep to this one.
    blocks = torch.tensor([[2.0**53, 1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    expected = ((2.0**53 + 1.0) + (1.0 + 1.0)) + 1.0
    assert _sum_in_pairs(blocks).tolist() == [[expected]]
    assert expected != sum(blocks[0].tolist())
