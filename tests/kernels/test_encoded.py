"""Encoded tensors: what is stored for each kind of scale."""

import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.encoded import block_units, decode_blocks, encode_blocks


def stored(values: list[float], text: str):
    return encode_blocks(torch.tensor(values), parse_format(text), -1)


def test_shared_exponents_are_stored_with_their_bias():
    assert stored([1.0], "bfp4").scales.tolist() == [127]  # of the maximum, 2^0
    assert stored([1.0], "bmf8-e4m3").scales.tolist() == [127]
    assert stored([1.0], "mxint8").scales.tolist() == [127]
    assert stored([1.0], "mxfp4").scales.tolist() == [125]  # of the scale, 2^(0 - 2)
    assert stored([0.0], "bfp4").scales.tolist() == [0]
    assert stored([1.0], "bfp4(exponent=5)").scales.tolist() == [15]


def test_mx_codes_are_those_of_the_standard():
    # OCP MX v1.0 §5.3.4: INT8 has an implied scale of 2^-6, so 1.0 is 64.
    assert stored([1.0, -1.0, 0.5], "mxint8").codes.tolist() == [64, 192, 32]
    # e2m1, lowest nibble first: 6 is 0b0111, -0.5 is 0b1001.
    assert stored([6.0, -0.5], "mxfp4").codes.tolist() == [0b1001_0111]


def test_float_scales_and_zero_points():
    encoded = stored([-1.0, 0.0, 14.0], "int4a")
    assert encoded.scales.tolist() == [1.0]
    assert encoded.zero_points.tolist() == [1]
    assert encoded.codes.tolist() == [0x10, 0x0F]


def test_nested_scales():
    encoded = stored([6.0 * 448, *[0.0] * 15, 6.0], "nvfp4")
    assert encoded.tensor_scales.tolist() == [1.0]
    assert encoded.scales.tolist() == [0x7E, 0x38]  # e4m3: 448 and 1


@pytest.mark.parametrize("text", ["int4", "bfp4", "nvfp4"])
def test_a_part_that_is_missing_is_no_zero(text):
    encoded = stored([1.0, 2.0], text)
    missing = "tensor_scales" if text == "nvfp4" else "scales"
    parts = {name: getattr(encoded, name) for name in encoded.__slots__} | {missing: None}
    with pytest.raises(TypeError, match="and this has none"):
        decode_blocks(type(encoded)(**parts), torch.float32)


@pytest.mark.parametrize("text", ["int4-g32", "int8-tensor", "nvfp4", "mxfp4", "bfp4", "fixed8.4"])
def test_block_units_are_what_a_code_is_multiplied_by(text):
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    encoded = encode_blocks(x, parse_format(text), -1)
    units = block_units(encoded)
    each = units.repeat_interleave(x.numel() // units.numel()).reshape(x.shape)
    values = decode_blocks(encoded, torch.float32)
    halves = (values / each * 2).round() / 2  # every element here is a multiple of a half
    assert torch.equal((halves * each).float(), values)
