"""What is stored beside the codes is counted, whoever reads it."""

import dataclasses

import pytest
import torch

from mpq.errors import FormatError
from mpq.formats.scale import NestedScale
from mpq.formats.zoo import parse_format
from mpq.kernels.encoded import encode_blocks
from mpq.kernels.stored_parts import (
    stored_above,
    stored_codes,
    stored_scales,
    stored_zero_points,
)


def encoded_with(text: str, **parts: torch.Tensor):
    return dataclasses.replace(encode_blocks(torch.ones(4, 40), parse_format(text), -1), **parts)


def test_parts_come_back_as_they_are_stored():
    encoded = encoded_with("int4a")
    assert stored_codes(encoded) is encoded.codes
    assert stored_scales(encoded) is encoded.scales
    assert stored_zero_points(encoded) is encoded.zero_points
    nested = encoded_with("nvfp4-token")
    assert torch.equal(stored_above(nested, nested.format.scale), nested.tensor_scales)


def test_calibrated_scales_follow_from_the_format():
    assert stored_scales(encoded_with("int8-tensor(absmax=254)")).tolist() == [[2.0]]
    above = stored_above(encoded_with("nvfp4(absmax=2688)"), NestedScale(absmax=2688.0))
    assert above.tolist() == [1.0]


@pytest.mark.parametrize("text", ["int4", "int4-g16", "nvfp4-token"])
def test_a_tensor_without_axes_has_one_of_each(text):
    encoded = encode_blocks(torch.tensor(1.5), parse_format(text), -1)
    assert stored_scales(encoded).numel() == 1
    if text == "nvfp4-token":
        assert stored_above(encoded, encoded.format.scale).numel() == 1


def test_what_does_not_fit_the_shape_is_refused():
    with pytest.raises(FormatError, match="160 codes of 4 bits take 80 bytes, not 79"):
        stored_codes(encoded_with("int4a", codes=torch.zeros(79).byte()))
    with pytest.raises(FormatError, match="12 codes of 8 bits take 12 bytes, not 3"):
        stored_scales(encoded_with("bfp4", scales=torch.zeros(3).byte()))
    with pytest.raises(FormatError, match=r"stores 4 scales of .*16, not 4 of .*32"):
        stored_scales(encoded_with("int4", scales=torch.ones(4)))
    with pytest.raises(FormatError, match="4 codes of 4 bits take 2 bytes, not 1"):
        stored_zero_points(encoded_with("int4a", zero_points=torch.zeros(1).byte()))
    nested = encoded_with("nvfp4-token", tensor_scales=torch.ones(1))
    with pytest.raises(FormatError, match=r"stores 4 scales of .*, not 1 of"):
        stored_above(nested, nested.format.scale)
