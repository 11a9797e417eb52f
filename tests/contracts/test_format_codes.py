"""Contract: every code comes back unchanged; between two codes the nearer one wins, ties to even.

Checked on every code of every element up to eight bits, against the scalar oracle and, where they
have the format, against ml_dtypes and gfloat.
"""

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch

from mpq.kernels.fake_quant import quantize
from tests.contracts.tensors import assert_same, scale_of_one, to_numpy
from tests.contracts.zoo import ALL, FACTS
from tests.oracles import scalar
from tests.oracles.outside import GFLOAT_BLOCKS

NARROW = [text for text in ALL if FACTS[text].width <= 8 and FACTS[text].absmax is None]


def between(values: np.ndarray) -> np.ndarray:
    """Midpoints of neighbours, quarter points, and one float32 step to both sides of each."""
    low, high = values[:-1], values[1:]
    points = np.concatenate(
        [low + (high - low) * part for part in (0.25, 0.5, 0.75)], dtype=np.float32
    )
    codes = values.astype(np.float32)
    inner = np.concatenate([points, codes])
    up, down = np.float32(np.inf), np.float32(-np.inf)
    return np.concatenate([points, np.nextafter(inner, up), np.nextafter(inner, down)])


def in_range(points: np.ndarray, text: str) -> np.ndarray:
    codes = FACTS[text].codes
    within = (points >= codes.values[0]) & (points <= codes.values[-1])
    return points[within & np.isfinite(points.astype(np.float32))]


# The ceil rule scales a maximum that is no power of two up to the next, past the largest code.
@pytest.mark.parametrize("text", [text for text in NARROW if FACTS[text].rule != "ceil"])
def test_every_code_comes_back_unchanged(text):
    values = in_range(np.array(FACTS[text].codes.values), text)
    x = scale_of_one(FACTS[text], values)
    if text.startswith("nvfp4"):
        text = "nvfp4(absmax=2688)"  # the dynamic scale of the tensor is no power of two
    assert_same(quantize(x, text), x, text)


@pytest.mark.parametrize("text", [t for t in NARROW if FACTS[t].scale == "range"])
def test_every_code_comes_back_under_every_zero_point(text):
    top = int(FACTS[text].anchor)
    for zero in {0, 1, top // 2, top - 1, top}:
        codes = torch.arange(top + 1.0) - zero
        frame = torch.tensor([0.0 - zero, top - zero])
        group = FACTS[text].group
        body = (group if isinstance(group, int) else len(codes) + 2) - 2
        for part in codes.split(body):
            x = torch.cat([frame, part])
            assert_same(quantize(x, text), x, f"{text} zero point {zero}")


@pytest.mark.parametrize("text", NARROW)
def test_between_codes_the_oracle_agrees(text):
    points = in_range(between(np.array(FACTS[text].codes.values)), text)
    x = scale_of_one(FACTS[text], points)
    assert_same(quantize(x, text), scalar.quantize(to_numpy(x), text), text)


OUTSIDE = {
    "fp8-e4m3": ml_dtypes.float8_e4m3fn,
    "fp8-e5m2": ml_dtypes.float8_e5m2,
    "mxfp8-e4m3": ml_dtypes.float8_e4m3fn,
    "mxfp8-e5m2": ml_dtypes.float8_e5m2,
    "mxfp6-e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp6-e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp4": ml_dtypes.float4_e2m1fn,
    "minifloat-e2m1": ml_dtypes.float4_e2m1fn,
    "bmf6-e3m2": ml_dtypes.float6_e3m2fn,
    "bmf4-e2m1": ml_dtypes.float4_e2m1fn,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
}


@pytest.mark.parametrize("text", OUTSIDE)
def test_rounding_is_that_of_ml_dtypes(text):
    dtype = OUTSIDE[text]
    bits = ml_dtypes.finfo(dtype).bits
    values = np.arange(2**bits).astype(np.uint16 if bits == 16 else np.uint8).view(dtype)
    values = np.unique(values.astype(np.float32))
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        points = np.concatenate([values, in_range(between(values), text)])
    x = scale_of_one(FACTS[text], points)
    assert_same(quantize(x, text), to_numpy(x).astype(dtype), text)


@pytest.mark.parametrize("text", ["fp8-e4m3", "fp8-e5m2", "fp16", "bf16", "minifloat-e4m3"])
def test_out_of_range_saturates(text):
    largest = FACTS[text].codes.largest
    up = float(np.nextafter(np.float32(largest), np.float32(np.inf)))
    beyond = torch.tensor([largest, min(up, 3.4e38), 3.4e38]).repeat(6)
    assert_same(quantize(beyond, text), torch.full((18,), largest), text)
    assert_same(quantize(-beyond, text), torch.full((18,), -largest), text)


@pytest.mark.parametrize("text", GFLOAT_BLOCKS)
def test_microscaling_blocks_are_those_of_gfloat(text):
    info = GFLOAT_BLOCKS[text]
    random = np.random.default_rng(1)
    for power in (-126, -100, -3, 0, 8, 120):
        x = (random.uniform(-1.99, 1.99, 32) * 2.0**power).astype(np.float32)
        x[3] = 0
        want = gfloat.quantize_block(info, x.astype(np.float64), gfloat.compute_scale_amax)
        if text == "mxint8":  # gfloat has the code -128; MXINT8 here is symmetric (design 3)
            lowest = -127 / 64 * gfloat.compute_scale_amax(info.etype.emax, x.astype(np.float64))
            want = np.maximum(want, lowest)
        np.testing.assert_array_equal(quantize(torch.from_numpy(x), text).double().numpy(), want)
