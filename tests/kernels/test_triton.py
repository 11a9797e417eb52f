"""The Triton kernels give the bits of eager: on a GPU where there is one, else interpreted."""

import os

import pytest
import torch

from mpq.formats.zoo import examples, parse_format
from mpq.kernels import eager, triton_launch, triton_tiles
from mpq.kernels import triton as kernels
from tests.contracts.tensors import adversarial
from tests.contracts.zoo import ALL

pytest.importorskip("triton", reason="the wheel is an extra: pip install 'mpq[triton]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy, of what overflows in a kernel
    pytest.mark.skipif(
        not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
        reason="neither a CUDA device nor TRITON_INTERPRET=1",
    ),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAN, INF = float("nan"), float("inf")

MORE = [
    *("bl9", "bfp4(block=4x16)", "int4(block=3x8)", "int4a(block=2x8)", "mxfp4(block=5x7)"),
    *("bfp4-token", "bfp4-tensor", "bl8-tensor", "int4a-tensor", "int4a-g1", "nf4-tensor"),
    *("bfp5-b7(scale_rule=mse)", "mxint8(scale_rule=mse)", "bl4(scale_rule=mse)"),
    *("mxfp8-e5m2(scale_rule=ceil)", "bl8(scale_rule=ceil)", "bfp24", "int24-g16-sf32"),
    *(
        "int20a-g16",
        "int20a-g16-sf32",
        "int12a-g16-sf16",
        "bfp4(exponent=2)",
        "bmf8-e5m2(exponent=5)",
    ),
    *("fixed8.-100", "fixed4.126", "minifloat-e8m10", "log9(bias=140)", "nf4-tensor(absmax=2.5)"),
    *("fp8-e4m3-tensor(absmax=1000.0)", "nvfp4-token-b7", "minifloat-e5m10-g16"),
    *("int4f(block=3x8)", "int4f-g1", "int24f-g16-sf32", "int12f-g16"),
]
"""Corners that only the kernels have: tiles of two axes, whole tensors, float64, every scale."""

FORMATS = sorted({*ALL, *examples(), *MORE})

FEW = ["bfp4", "bl4(zero=false)", "int4-g16", "int4a", "nvfp4", "nf4", "int8-tensor", "fixed8.4"]
FEW += ["int4f-g16"]
"""One format for each way through the launches."""


def stress(dtype: torch.dtype) -> torch.Tensor:
    """Every adversarial value and what is near the ends of a dtype, [rows, 70], finite."""
    values = [x.flatten() for x in adversarial().values()]
    tail = torch.randn(70, generator=torch.Generator().manual_seed(3))
    limit = torch.finfo(dtype).max
    values += [tail * limit / 4, tail * torch.finfo(dtype).tiny]
    flat = torch.cat(values)
    return flat[: flat.numel() // 70 * 70].reshape(-1, 70).clamp(-limit, limit).to(dtype)


def assert_bits(x: torch.Tensor, text: str, axis: int = -1) -> None:
    """The kernels give the bits of eager on the CPU, NaN for NaN."""
    named = parse_format(text)
    assert kernels.covers(named, x, axis)
    want = eager.fake_quantize(x, named, axis)
    got = kernels.fake_quantize(x.to(DEVICE), named, axis).cpu()
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    integer = torch.int32 if x.dtype == torch.float32 else torch.int16
    is_same = (got.view(integer) == want.view(integer)) | (got.isnan() & want.isnan())
    first = (~is_same).nonzero()[:1]
    assert is_same.all(), (
        f"{text}: {int((~is_same).sum())} of {got.numel()} differ, first at {first.tolist()}: "
        f"from {x[~is_same][:3].tolist()} got {got[~is_same][:3].tolist()}, "
        f"want {want[~is_same][:3].tolist()}"
    )


@pytest.mark.parametrize("text", FORMATS)
def test_every_format_has_the_bits_of_eager(text):
    assert_bits(stress(torch.float32), text)
    assert_bits(stress(torch.bfloat16), text, 0)
    assert_bits(stress(torch.float16)[:12].reshape(3, 4, 70).movedim(2, 1), text, 1)


@pytest.mark.parametrize("text", FORMATS)
def test_what_is_not_finite_poisons_what_it_does_in_eager(text):
    x = stress(torch.float32)[:4, :50].clone()
    x[0, 3], x[1, 20], x[3, 49], x[3, 1] = NAN, INF, -INF, -NAN
    assert_bits(x, text)


@pytest.mark.parametrize("text", FEW)
@pytest.mark.parametrize("shape", [(), (1,), (17,), (2, 1), (1, 33), (3, 5, 7), (2, 1, 3, 2, 5)])
def test_shapes(text, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3
    for axis in range(-max(1, x.dim()), 0):
        assert_bits(x, text, axis)


@pytest.mark.parametrize("text", [*FEW, "bfp4(block=2x3)"])
def test_strides_do_not_show(text):
    x = torch.randn(2, 6, 5, 8, generator=torch.Generator().manual_seed(1)).half()
    heads = x.transpose(1, 2)  # what attention hands over: no copy is made of it
    assert triton_tiles.is_seen(heads, 3)
    assert_bits(heads, text)
    assert_bits(heads, text, 2)
    assert_bits(x[:, ::2, :, 1:6].float(), text)
    assert_bits(x.permute(3, 1, 0, 2), text, 1)
    assert_bits(x[:1].expand(3, 6, 5, 8), text, 2)
    tangled = torch.randn(2, 3, 2, 3, 2, 3)[:, ::2].permute(4, 2, 0, 3, 1, 5)[..., 1:]
    assert not triton_tiles.is_seen(tangled, None)
    assert_bits(tangled, text, 2)


@pytest.mark.parametrize(
    "text",
    [
        *("int4", "int4a", "bfp4-token", "nvfp4-token", "int8-tensor", "int4a-tensor", "nf4"),
        *("int4f", "int8f-tensor"),
    ],
)
def test_rows_longer_than_a_program_holds_take_two_passes(text, monkeypatch):
    monkeypatch.setattr(triton_tiles, "TILE", 128)
    monkeypatch.setattr(triton_tiles, "STRIDED", 16)
    monkeypatch.setattr(triton_launch, "LARGEST_BLOCK", 64)
    monkeypatch.setattr(triton_launch, "LONGEST_STRIDED", 16)
    x = torch.randn(3, 150, generator=torch.Generator().manual_seed(2)) * 2.0**30
    assert_bits(x, text)
    x[1, 40] = INF
    assert_bits(x[:, 40:90].T.contiguous(), text, 0)


def test_where_a_format_keeps_every_value_the_tensor_comes_back():
    x = torch.ones(3)
    assert kernels.fake_quantize(x, parse_format("fp32"), -1) is x
