"""The contract of every path that decodes: the bits of eager, for every format, dtype and shape.

A new path joins by an entry in PATHS.
"""

import dataclasses
import importlib
import math
from types import ModuleType

import pytest
import torch

from mpq.errors import FormatError
from mpq.formats.element import has_negative_zero
from mpq.formats.zoo import examples, parse_format
from mpq.kernels import encoded as eager
from mpq.kernels.choice import MODULES, choose, has_compiler
from mpq.kernels.encoded import Encoded
from mpq.kernels.fake_quant import decode
from tests.contracts.tensors import adversarial, normal
from tests.contracts.zoo import ALL

PATHS = {"cpu": "cpu"}
"""Path -> the device on which it is tested. Triton's is tested in test_triton_encoded.py, too."""

LEFT_TO_EAGER = {"cpu_encoded": lambda format: format.has_2d_block}
"""Module -> whether it leaves a format of these tests to eager. It covers all others, each in
every float dtype, shape and axis here, or a test fails."""

FORMATS = [text for text in dict.fromkeys([*ALL, *examples()]) if text != "fp32"]
FEW = [
    "bfp4",
    "int4-g16",
    "int4a-g16",
    "nvfp4",
    "minifloat-e4m3",
    "int3a-g16-sf16",
    "nf4-g16-sf32",
]
"""One for each kind of scale, for each of which a path may be compiled."""

WIDTHS = ["int2", "int3", "int5a", "bfp6", "int8", "bfp12", "int14", "int15", "int16", "bf16"]
"""Codes of few bits and of many, which are read by fours and one by one."""

TENSORS = ["int8-tensor", "int8-tensor(absmax=3.5)", "bfp4-tensor", "int4a-tensor"]
"""One scale for all."""

UNUSED = [
    *("int4", "int8-g16", "mxint8", "fixed4.0", "nf4-g64", "log4", "bl4", "nvfp4", "fp16"),
    *("fp8-e4m3", "fp8-e4m3-tensor", "fp8-e5m2-token", "mxfp8-e4m3", "mxfp8-e5m2"),
]
"""Formats with codes that `encode` never writes, and some without."""

ZEROS = [
    *(
        "int4",
        "int4-g16-sf32",
        "int4f",
        "int8f-token",
        "int4f-g16-sf32",
        "int4a",
        "int3a-g16-sf16",
    ),
    *("nf4-g64", "nf4-g16-sf32", "nvfp4", "nvfp4-token", "minifloat-e2m1-g32", "fp8-e5m2-token"),
    *("int8-tensor", "int8f-tensor", "int4a-tensor", "nf4-tensor", "fp8-e4m3-tensor"),
]
"""Formats with a float scale, of each kind of element and of each place of the scale."""

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INTEGERS = {2: torch.int16, 4: torch.int32}


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> ModuleType:
    if not has_compiler(request.param):
        pytest.skip(f"the {request.param} path has no compiler here")
    return importlib.import_module(f"mpq.kernels.{MODULES['decode'][request.param]}")


def with_scales_near_zero(text: str) -> list[Encoded]:
    """Codes under scales of 0, -0, and the least of either sign, in each part that scales."""
    encoded = eager.encode_blocks(normal(4, 512), parse_format(text), -1)
    cases = []
    for name in ("scales", "tensor_scales"):
        part = getattr(encoded, name)
        if part is None:
            continue
        if part.dtype == torch.uint8:
            values = [0x00, 0x80, 0x01, 0x81]  # of e4m3
        else:
            told = torch.finfo(part.dtype)
            least = told.smallest_normal * told.eps
            values = [0.0, -0.0, least, -least]
        for value in values:
            near = part.clone()
            near[: max(1, len(near) // 2)] = value
            cases.append(dataclasses.replace(encoded, **{name: near}))
    return cases


def is_covered(path: ModuleType, encoded: Encoded, dtype: torch.dtype) -> bool:
    values = torch.empty((), dtype=torch.promote_types(encoded.dtype, dtype))
    return path.covers(encoded.format, values.expand(encoded.shape), encoded.axis)


def assert_same_bits(path: ModuleType, encoded: Encoded, dtype: torch.dtype) -> None:
    is_left = LEFT_TO_EAGER[path.__name__.rpartition(".")[2]](encoded.format)
    assert is_covered(path, encoded, dtype) != is_left, (
        f"{encoded.format}, {encoded.dtype} as {dtype}, shape {encoded.shape}, axis {encoded.axis}"
    )
    if is_left:
        return
    got, want = path.decode_blocks(encoded, dtype), eager.decode_blocks(encoded, dtype)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    whole = INTEGERS[want.itemsize]
    wrong = got.contiguous().view(whole) != want.contiguous().view(whole)
    assert not wrong.any(), (
        f"{encoded.format}, {encoded.dtype} as {dtype}, shape {encoded.shape}, axis "
        f"{encoded.axis}: {int(wrong.sum())} differ: {got[wrong][:3].tolist()}, not "
        f"{want[wrong][:3].tolist()}"
    )


@pytest.mark.parametrize("text", FORMATS)
def test_every_format_has_the_bits_of_eager(path, text):
    named = parse_format(text)
    for x in adversarial().values():
        assert_same_bits(path, eager.encode_blocks(x, named, 1), torch.float32)


@pytest.mark.parametrize("text", FEW)
@pytest.mark.parametrize("dtype", DTYPES)
def test_another_axis_and_another_dtype_have_the_bits_of_eager(path, text, dtype):
    named = parse_format(text)
    for x in (*adversarial().values(), normal(18, 35) * 1e4):
        given = x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
        for axis in (0, 1):
            encoded = eager.encode_blocks(given, named, axis)
            for wanted in DTYPES:
                assert_same_bits(path, encoded, wanted)


@pytest.mark.parametrize("text", [*FEW, *WIDTHS, *TENSORS, "int8-token", "nvfp4-token"])
@pytest.mark.parametrize(
    "shape", [(), (1,), (16,), (129,), (1, 1), (7, 600), (600, 7), (2, 3, 64, 20), (5, 1, 33)]
)
def test_every_shape_and_axis_has_the_bits_of_eager(path, text, shape):
    x, named = normal(math.prod(shape)).reshape(shape), parse_format(text)
    for axis in range(max(len(shape), 1)):
        assert_same_bits(path, eager.encode_blocks(x, named, axis), torch.float32)


@pytest.mark.parametrize("text", [*FEW, "int8-tensor", "bfp3", "int5", "mxint8", "bl8"])
def test_shares_of_a_large_tensor_have_the_bits_of_eager(path, text, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x, named = normal(520, 1000), parse_format(text)
    for axis in (0, 1):
        assert_same_bits(path, eager.encode_blocks(x, named, axis), torch.bfloat16)


@pytest.mark.parametrize("text", UNUSED)
def test_codes_that_are_never_written_have_the_bits_of_eager(path, text):
    encoded = eager.encode_blocks(normal(4, 512), parse_format(text), -1)
    every = torch.arange(encoded.codes.numel(), dtype=torch.int32).to(torch.uint8)
    assert_same_bits(path, dataclasses.replace(encoded, codes=every), torch.float32)
    if encoded.scales is not None and encoded.scales.dtype == torch.uint8:
        scales = torch.arange(encoded.scales.numel(), dtype=torch.int32).to(torch.uint8)
        assert_same_bits(path, dataclasses.replace(encoded, scales=scales), torch.float32)


@pytest.mark.parametrize("text", ZEROS)
def test_zeros_under_any_scale_have_the_bits_of_eager(path, text):
    for encoded in with_scales_near_zero(text):
        for dtype in DTYPES:
            assert_same_bits(path, encoded, dtype)


@pytest.mark.parametrize("text", ZEROS)
def test_a_zero_has_a_sign_only_where_its_element_has_one(text):
    keeps = has_negative_zero(parse_format(text).element)
    zeros = []
    for encoded in with_scales_near_zero(text):
        values = eager.decode_blocks(encoded, torch.float32)
        zeros.append(values[values == 0])
    assert torch.cat(zeros).signbit().any() == keeps


@pytest.mark.parametrize("text", ["bfp4", "int4-g2", "nf4-g4", "bmf8-e4m3", "bl8", "fixed8.-100"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_dtype_that_does_not_hold_the_values_saturates_them(path, text, axis):
    wide = torch.tensor([1e6, -1e6, 3e4, -0.0, 2e38, -2e38]).repeat(8, 1)
    encoded = eager.encode_blocks(wide, parse_format(text), axis)
    for dtype in DTYPES:
        assert_same_bits(path, encoded, dtype)


@pytest.mark.parametrize("text", ["bfp4", "int4a-g16", "fp8-e4m3", "int8-tensor"])
@pytest.mark.parametrize("size", [1.0, 1e6])  # of which float16 does not hold the second
def test_values_go_where_they_are_wanted(path, text, size):
    encoded = eager.encode_blocks(normal(6, 40) * size, parse_format(text), -1)
    out = torch.full((6, 40), 9.0, dtype=torch.float16)
    assert path.decode_blocks(encoded, torch.float16, out) is out
    assert torch.equal(out, eager.decode_blocks(encoded, torch.float16))


@pytest.mark.parametrize(
    ("text", "name"),
    [("bfp4", "scales"), ("int4a", "zero_points"), ("nvfp4", "tensor_scales")],
)
def test_a_part_that_is_missing_is_not_read(path, text, name):
    encoded = eager.encode_blocks(torch.ones(4, 40), parse_format(text), -1)
    with pytest.raises(TypeError, match=f"stores {name}, and this has none"):
        path.decode_blocks(dataclasses.replace(encoded, **{name: None}), torch.float32)


@pytest.mark.parametrize(
    ("text", "name", "part", "told"),
    [
        ("bfp4", "codes", torch.zeros(79).byte(), "160 codes of 4 bits take 80 bytes, not 79"),
        ("fixed4.0", "codes", torch.zeros(81).byte(), "160 codes of 4 bits take 80 bytes, not 81"),
        ("bfp4", "scales", torch.zeros(3).byte(), "12 codes of 8 bits take 12 bytes, not 3"),
        ("int4a", "zero_points", torch.zeros(1).byte(), "4 codes of 4 bits take 2 bytes, not 1"),
        ("int4", "scales", torch.ones(4), r"stores 4 scales of torch.bfloat16, not 4 of torch.fl"),
        ("nvfp4", "tensor_scales", torch.ones(2), "stores 1 scales of torch.float32, not 2 of"),
    ],
)
def test_bytes_and_scales_are_counted_before_they_are_read(path, text, name, part, told):
    encoded = eager.encode_blocks(torch.ones(4, 40), parse_format(text), -1)
    with pytest.raises(FormatError, match=told):
        path.decode_blocks(dataclasses.replace(encoded, **{name: part}), torch.float32)


@pytest.mark.parametrize("text", ["bfp4", "int4a-g16", "nvfp4", "fp8-e4m3"])
def test_the_door_takes_the_path_of_the_device(text, monkeypatch):
    if not has_compiler("cpu"):
        pytest.skip("numba is not installed")
    monkeypatch.delenv("MPQ_KERNEL", raising=False)
    encoded = eager.encode_blocks(normal(3, 40), parse_format(text), -1)
    want = eager.decode_blocks(encoded, torch.float32)
    assert choose(normal(3, 40), encoded.format, -1, "decode") == "cpu"
    if encoded.format.block is not None:  # else eager makes a table of every code
        monkeypatch.setattr(eager, "unpack", None)  # what eager could not do without
    assert torch.equal(decode(encoded), want)
