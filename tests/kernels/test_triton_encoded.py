"""Codes by Triton kernels: all that is stored, and what is read from it, has the bits of eager."""

import dataclasses

import pytest
import torch

from mpq.errors import FormatError
from mpq.formats.zoo import parse_format
from mpq.kernels import encoded as eager
from mpq.kernels import triton_encoded as kernels
from mpq.kernels import triton_launch, triton_tiles
from mpq.kernels.fake_quant import decode, encode
from tests.kernels.test_choice_decoding import ZEROS, with_scales_near_zero
from tests.kernels.test_triton import DEVICE, FEW, FORMATS, pytestmark, stress  # noqa: F401

PARTS = ("codes", "scales", "zero_points", "tensor_scales")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def assert_same(got: torch.Tensor | None, want: torch.Tensor | None, told: str) -> None:
    """Equal in shape, dtype and bits."""
    if got is None or want is None:
        assert got is want, told
        return
    got = got.cpu()
    assert (got.shape, got.dtype) == (want.shape, want.dtype), told
    bits = (
        torch.uint8 if want.itemsize == 1 else torch.int16 if want.itemsize == 2 else torch.int32
    )
    wrong = got.contiguous().view(bits) != want.contiguous().view(bits)
    assert not wrong.any(), (
        f"{told}: {int(wrong.sum())} of {wrong.numel()} differ, first at "
        f"{wrong.nonzero()[0].tolist()}: got {got[wrong][:3].tolist()}, "
        f"want {want[wrong][:3].tolist()}"
    )


def assert_bits(x: torch.Tensor, text: str, axis: int = -1, *dtypes: torch.dtype) -> None:
    """The kernels store what eager stores, and read from it, in each dtype, what eager reads."""
    named = parse_format(text)
    assert kernels.covers(named, x, axis)
    want = eager.encode_blocks(x, named, axis)
    got = kernels.encode_blocks(x.to(DEVICE), named, axis)
    assert (got.axis, got.shape, got.dtype) == (want.axis, want.shape, want.dtype)
    for name in PARTS:
        assert_same(getattr(got, name), getattr(want, name), f"{text} {x.dtype} {axis} {name}")
    for dtype in dtypes or (x.dtype,):
        values = kernels.decode_blocks(got, dtype)
        assert_same(values, eager.decode_blocks(want, dtype), f"{text} {x.dtype} {axis} {dtype}")


@pytest.mark.parametrize("text", FORMATS)
def test_every_format_is_stored_and_read_as_eager_does(text):
    assert_bits(stress(torch.float32)[::3], text)
    x = stress(torch.float16)[:6].reshape(3, 2, 70).movedim(2, 1)
    assert_bits(x, text, 1, torch.bfloat16)


@pytest.mark.parametrize(
    "text", [*FEW, "bf16", "fp16", "fp8-e4m3", "minifloat-e8m3", "int4a-tensor"]
)
def test_bfloat16_is_stored_and_read_as_eager_does(text):
    assert_bits(stress(torch.bfloat16)[::2], text, 0, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("text", FEW)
@pytest.mark.parametrize("shape", [(), (1, 33), (3, 5, 7)])
def test_shapes(text, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3
    for axis in range(-max(1, x.dim()), 0):
        assert_bits(x, text, axis)


@pytest.mark.parametrize("text", [*FEW, "bfp4(block=2x3)", "nvfp4-token"])
def test_strides_do_not_show(text):
    x = torch.randn(2, 6, 5, 8, generator=torch.Generator().manual_seed(1)).half()
    assert_bits(x.transpose(1, 2), text)
    assert_bits(x.transpose(1, 2), text, 2)
    assert_bits(x.permute(3, 1, 0, 2)[:, ::2], text, 1)
    tangled = torch.randn(2, 3, 2, 3, 2, 3)[:, ::2].permute(4, 2, 0, 3, 1, 5)[..., 1:]
    assert_bits(tangled, text, 2)


@pytest.mark.parametrize(
    "text",
    [
        *("int4", "int4a", "bfp4-token", "nvfp4-token", "int8-tensor", "int4a-tensor", "nf4"),
        *("bfp4-tensor", "int5a", "bfp4-token(exponent=5)", "int4f", "int8f-tensor"),
    ],
)
def test_rows_longer_than_a_program_holds_share_what_is_stored_once(text, monkeypatch):
    monkeypatch.setattr(triton_tiles, "TILE", 128)
    monkeypatch.setattr(triton_tiles, "STRIDED", 16)
    monkeypatch.setattr(triton_launch, "LARGEST_BLOCK", 64)
    monkeypatch.setattr(triton_launch, "LONGEST_STRIDED", 16)
    x = torch.randn(3, 150, generator=torch.Generator().manual_seed(2)) * 2.0**30
    assert_bits(x, text)
    assert_bits(x[:, 40:90].T.contiguous(), text, 0)


@pytest.mark.parametrize("text", ["fp32", "minifloat-e8m22", "int24", "int13a", "fixed20.3"])
def test_wide_codes(text):
    x = stress(torch.float32)[::5]
    if text.startswith("fixed"):
        x = x.clamp(-(2.0**30), 2.0**30)
    assert_bits(x, text)


@pytest.mark.parametrize("text", ["bfp4", "int4a-g16", "nvfp4", "fp8-e4m3"])
def test_the_door_takes_the_kernels_when_asked(text, monkeypatch):
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    want = encode(x, text)
    monkeypatch.setenv("MPQ_KERNEL", "triton")
    monkeypatch.setattr(eager, "pack", None)  # what eager could not do without
    got = encode(x.to(DEVICE), text)
    for name in PARTS:
        assert_same(getattr(got, name), getattr(want, name), text)
    monkeypatch.setattr(eager, "unpack", None)
    values = decode(got)
    monkeypatch.undo()
    assert_same(values, decode(want), text)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_that_does_not_hold_the_values_saturates_them(dtype):
    wide = torch.tensor([1e6, -1e6, 3e4, -0.0, 2e38, -2e38]).repeat(8, 1)
    for text in ("bfp4", "bfp4-token", "int8-g2", "nf4-g3", "bmf8-e4m3", "bl8", "fixed8.-100"):
        assert_bits(wide, text, -1, dtype)
        assert_bits(wide, text, 0, dtype)


@pytest.mark.parametrize("text", ZEROS)
def test_zeros_under_any_scale_have_the_bits_of_eager(text):
    for encoded in with_scales_near_zero(text):
        parts = {name: getattr(encoded, name) for name in PARTS}
        there = {name: x.to(DEVICE) for name, x in parts.items() if x is not None}
        for dtype in DTYPES:
            got = kernels.decode_blocks(dataclasses.replace(encoded, **there), dtype)
            assert_same(got, eager.decode_blocks(encoded, dtype), f"{text} {dtype}")


def decoded_with(text: str, name: str, part: torch.Tensor | None) -> torch.Tensor:
    """What is read of ones, [4, 40], when a part of what was stored is another."""
    encoded = kernels.encode_blocks(torch.ones(4, 40, device=DEVICE), parse_format(text), -1)
    part = part if part is None else part.to(DEVICE)
    return kernels.decode_blocks(dataclasses.replace(encoded, **{name: part}), torch.float32)


@pytest.mark.parametrize(
    ("text", "name"),
    [("bfp4", "scales"), ("int4a", "zero_points"), ("nvfp4", "tensor_scales")],
)
def test_a_part_that_is_missing_is_not_read(text, name):
    with pytest.raises(TypeError, match=f"stores {name}, and this has none"):
        decoded_with(text, name, None)


@pytest.mark.parametrize(
    ("text", "name", "part", "told"),
    [
        ("bfp4", "codes", torch.zeros(79).byte(), "160 codes of 4 bits take 80 bytes, not 79"),
        ("bfp4", "scales", torch.zeros(3).byte(), "12 codes of 8 bits take 12 bytes, not 3"),
        ("int4a", "zero_points", torch.zeros(1).byte(), "4 codes of 4 bits take 2 bytes, not 1"),
        ("int4", "scales", torch.ones(4), r"stores 4 scales of torch.bfloat16, not 4 of torch.fl"),
        ("nvfp4", "tensor_scales", torch.ones(2), "stores 1 scales of torch.float32, not 2 of"),
    ],
)
def test_bytes_and_scales_are_counted_before_they_are_read(text, name, part, told):
    with pytest.raises(FormatError, match=told):
        decoded_with(text, name, part)
