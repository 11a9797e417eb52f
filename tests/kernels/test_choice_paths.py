"""The contract of every path: the bits of eager, NaN for NaN, for every format, dtype and shape.

A new path joins by an entry in PATHS.
"""

import importlib
import math
from types import ModuleType

import pytest
import torch

from mpq.formats.zoo import examples, parse_format
from mpq.kernels import eager
from mpq.kernels.choice import has_compiler
from tests.contracts.tensors import adversarial, normal
from tests.contracts.zoo import ALL

PATHS = {"cpu": "cpu"}
"""Path -> the device on which it is tested."""

FORMATS = [text for text in dict.fromkeys([*ALL, *examples()]) if text != "fp32"]
FEW = ["bfp4", "int4-g16", "int4f-g16", "int4a-g16", "nvfp4", "minifloat-e4m3"]
"""One for each kind of scale, for each of which a path may be compiled."""

SHORT = [
    *(
        (text, torch.float16)
        for text in (*FEW, "bfp8", "mxint8", "int8", "int2a", "int2f", "fp8-e5m2")
    ),
    *((text, torch.bfloat16) for text in ("bfp4", "bfp8", "mxint8", "minifloat-e4m3", "bf16")),
]
"""Formats in the dtypes of 16 bits: not all, for each kind is compiled, and kinds are stages of
a tile that meet in its float32 values alone."""

INTEGERS = {2: torch.int16, 4: torch.int32}
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> ModuleType:
    if not has_compiler(request.param):
        pytest.skip(f"the {request.param} path has no compiler here")
    return importlib.import_module(f"mpq.kernels.{request.param}")


def assert_same_bits(path: ModuleType, x: torch.Tensor, text: str, axis: int) -> None:
    named = parse_format(text)
    if not path.covers(named, x, axis):
        return
    device = PATHS[path.__name__.rpartition(".")[2]]
    got = path.fake_quantize(x.to(device), named, axis).to(x.device)
    want = eager.fake_quantize(x, named, axis)
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    whole = INTEGERS[x.itemsize]
    wrong = (got.view(whole) != want.view(whole)) & ~(got.isnan() & want.isnan())
    assert not wrong.any(), (
        f"{text}, {x.dtype}, shape {tuple(x.shape)}, axis {axis}: {int(wrong.sum())} differ: "
        f"{x[wrong][:3].tolist()} became {got[wrong][:3].tolist()}, not {want[wrong][:3].tolist()}"
    )


def held(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values as the dtype's, within its range."""
    limit = torch.finfo(dtype).max
    return x.double().clamp(-limit, limit).to(dtype)


def with_faults(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten()
    flat[::50], flat[7::50], flat[23::50], flat[3::7] = NAN, INF, -INF, -0.0
    return flat.view(x.shape)


def assert_same_bits_of_any_value(
    path: ModuleType, text: str, dtype: torch.dtype, axes: tuple[int, ...]
) -> None:
    for x in adversarial().values():
        for axis in axes:
            assert_same_bits(path, held(x, dtype), text, axis)
    x = normal(18, 35)
    for size in (0.0, 1e-42, 1e-36, 1e-20, 1e-3, 1e4, 1e30, 3e38):
        for axis in axes:
            assert_same_bits(path, held(x * size, dtype), text, axis)
            assert_same_bits(path, with_faults(held(x * size, dtype)), text, axis)


@pytest.mark.parametrize("text", FORMATS)
def test_every_format_takes_the_same_bits(path, text):
    assert_same_bits_of_any_value(path, text, torch.float32, (1,))


@pytest.mark.parametrize("text", FEW)
def test_blocks_along_another_axis_take_the_same_bits(path, text):
    assert_same_bits_of_any_value(path, text, torch.float32, (0,))


@pytest.mark.parametrize(("text", "dtype"), SHORT)
def test_short_floats_take_the_same_bits(path, text, dtype):
    assert_same_bits_of_any_value(path, text, dtype, (1,))


@pytest.mark.parametrize(
    "text",
    [
        *(*FEW, "int4", "int8-token", "nvfp4-token", "int8-tensor", "int8-tensor(absmax=3.5)"),
        *("log8", "int8f-tensor", "int8f-tensor(absmax=3.5)"),
    ],
)
@pytest.mark.parametrize(
    "shape", [(), (1,), (16,), (129,), (1, 1), (7, 600), (600, 7), (2, 3, 64, 20), (5, 1, 33)]
)
def test_every_shape_and_axis_takes_the_same_bits(path, text, shape):
    x = normal(math.prod(shape)).reshape(shape)
    for axis in range(max(len(shape), 1)):
        assert_same_bits(path, x, text, axis)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        *((text, torch.float32) for text in (*FEW, "log8", "int8-tensor(absmax=3.5)")),
        ("bfp4", torch.bfloat16),
        ("bfp4", torch.float16),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("fault", [NAN, INF, -INF])
def test_one_fault_among_many_blocks_takes_the_same_bits(
    path, text, dtype, axis, fault, monkeypatch
):
    x = normal(3, 64, 700).to(dtype)
    x[2, 63, 698] = fault  # in the last tile, which may be a short one
    assert_same_bits(path, x, text, axis)
    if text == "nvfp4":
        return  # what lies above its blocks is the tensor's: eager takes all of it
    left, quantize = [], eager.fake_quantize
    monkeypatch.setattr(
        eager, "fake_quantize", lambda part, *rest: left.append(part) or quantize(part, *rest)
    )
    path.fake_quantize(x, parse_format(text), axis)
    assert len(left) == 1
    assert left[0].numel() < x.numel() / 8


def test_a_row_without_a_positive_zero_has_a_positive_scale_above(path):
    x = torch.zeros(2, 35)
    x[0], x[1, ::2] = -0.0, -0.0
    for sign in (1, -1):
        for axis in (0, 1):
            assert_same_bits(path, x * sign, "nvfp4-token", axis)


@pytest.mark.parametrize("text", [*FEW, "nvfp4-token"])
def test_strided_tensors_take_the_same_bits_and_are_left_alone(path, text):
    for x in (normal(48, 40).T, normal(40, 96)[:, ::2], normal(2, 5, 3, 32).transpose(1, 2)):
        before = x.clone()
        for axis in (0, -1):
            assert_same_bits(path, x, text, axis)
        assert torch.equal(x, before)


@pytest.mark.parametrize("text", FEW)
def test_results_do_not_depend_on_the_number_of_threads(path, text):
    x = normal(600, 1024)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for axis in (0, 1):
                assert_same_bits(path, x, text, axis)
    finally:
        torch.set_num_threads(before)


def test_the_paths_cover_what_matters(path):
    x = normal(4, 32)
    left = {text for text in FORMATS if not path.covers(parse_format(text), x, -1)}
    assert left == {
        "log9",
        "bfp4(scale_rule=mse)",
        "mxfp4(scale_rule=mse)",
        "bfp6(exponent=5,block=4x16)",
    }
    assert not path.covers(parse_format("bfp4"), x.double(), -1)
