"""Kernels that decode: in float32 where it holds every unit of a tile, in float64 elsewhere."""

import dataclasses

import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.encoded import Encoded, decode_blocks
from mpq.kernels.triton_encoded import decode_blocks as decode_in_kernel
from tests.kernels.test_triton import DEVICE, pytestmark  # noqa: F401


@pytest.mark.parametrize("text", ["bfp2", "bfp8", "bl8", "bmf8-e5m2", "mxfp8-e4m3", "mxint8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_exponent_that_can_be_stored(text, dtype):
    named = parse_format(text)
    top = 255 if text.startswith("mx") else 256  # E8M0's top code is no number
    exponents = torch.arange(top).to(torch.uint8)
    width, columns = named.element.width, named.block.columns
    codes = torch.randint(
        0, 256, (top * columns * width // 8,), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)
    if text.startswith("mxfp8"):
        codes = codes.where(codes & 0x7F != 0x7F, 0)  # nor are e4m3's NaN
    if text == "mxint8":
        codes = codes.where(codes != 128, 0)  # nor is what a symmetric code leaves out
    encoded = Encoded(
        format=named, axis=-1, shape=(top, columns), dtype=dtype, codes=codes, scales=exponents
    )
    on_device = dataclasses.replace(encoded, codes=codes.to(DEVICE), scales=exponents.to(DEVICE))
    got, want = decode_in_kernel(on_device, dtype).cpu(), decode_blocks(encoded, dtype)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(got.view(integer), want.view(integer))
