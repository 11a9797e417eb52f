"""The scalar oracle, proven against gfloat's blocks, ml_dtypes' casts, and worked examples."""

import gfloat
import ml_dtypes
import numpy as np
import pytest

from tests.oracles.outside import GFLOAT_BLOCKS
from tests.oracles.scalar import quantize


@pytest.mark.parametrize("text", GFLOAT_BLOCKS)
def test_microscaling_blocks_are_those_of_gfloat(text):
    info = GFLOAT_BLOCKS[text]
    random = np.random.default_rng(0)
    for power in (-120, -20, 0, 3, 60):
        x = (random.standard_normal(32) * 2.0**power).astype(np.float32)
        x[7] = 0
        want = gfloat.quantize_block(info, x.astype(np.float64), gfloat.compute_scale_amax)
        if text == "mxint8":  # gfloat has the code -128; the design's MXINT8 is symmetric.
            scale = gfloat.compute_scale_amax(info.etype.emax, x.astype(np.float64))
            want = np.maximum(want, -127 / 64 * scale)
        np.testing.assert_array_equal(quantize(x, text).astype(np.float64), want)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("fp8-e4m3", ml_dtypes.float8_e4m3fn),
        ("fp8-e5m2", ml_dtypes.float8_e5m2),
        ("minifloat-e2m1", ml_dtypes.float4_e2m1fn),
        ("bf16", ml_dtypes.bfloat16),
        ("fp16", np.float16),
    ],
)
def test_unscaled_floats_are_casts_within_range(text, dtype):
    largest = min(float(ml_dtypes.finfo(dtype).max), 1e30)
    random = np.random.default_rng(0)
    x = (random.uniform(-1, 1, 2000) * np.exp2(random.uniform(-30, 20, 2000))).astype(np.float32)
    x = x[np.abs(x) <= largest]
    got = quantize(x, text)
    np.testing.assert_array_equal(got, x.astype(dtype).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(got), np.signbit(x))


WORKED = [
    # text, input, expected; each line is arithmetic that one can do by hand.
    ("bfp4", [1.0, 0.125, 0.375, -0.9], [1.0, 0.0, 0.5, -1.0]),  # step 1/4: ties 0.5, 1.5
    ("bfp4", [1.99, 0.1], [1.75, 0.0]),  # saturates at 7 steps
    ("bfp2", [3.0, 1.0, 1.1], [2.0, 0.0, 2.0]),  # step 2
    ("bl4", [1.4, 1.0, 0.7, 0.0], [1.0, 1.0, 0.5, 0.0]),  # 0.7 < 0.75; the maximum rounds to 1
    ("bl4", [1.6, 1.0], [2.0, 1.0]),
    ("log8", [1.45, 1.5, 3.0, 0.0, -1.6], [1.0, 2.0, 2.0, 0.0, -2.0]),  # codes 63, 64, 65
    ("int4", [7.0, 2.5, 3.5, -7.4], [7.0, 2.0, 4.0, -7.0]),  # bf16(7.4 / 7) is 1.0546875
    ("int4-tensor(absmax=7)", [7.0, 2.5, 3.5, -9.0], [7.0, 2.0, 4.0, -7.0]),
    ("int4f", [8.0, 2.5, -3.5, -7.9, -0.1], [8.0, 2.0, -4.0, -7.0, 0.0]),  # the scale is -1
    ("int4f", [-8.0, 8.0, 2.5], [-8.0, 7.0, 2.0]),
    ("int4f-tensor(absmax=8)", [8.0, -9.0, 2.5], [7.0, -8.0, 2.0]),
    ("int4a", [0.0, 15.0, 2.5, 3.5], [0.0, 15.0, 2.0, 4.0]),
    ("int4a", [-1.0, 14.0, 2.5, -0.5], [-1.0, 14.0, 3.0, -1.0]),  # zero point 1: stored codes tie
    ("fixed8.4", [0.03125, 0.09375, 9.0, -9.0], [0.0, 0.125, 7.9375, -8.0]),
    ("minifloat-e4m3", [0.99, 1.99, 1e9, 2.0**-10], [1.0, 2.0, 480.0, 0.0]),
    ("dmf-e4m3", [1.0, 0.5, 4.0, 300.0], [1.0, 0.5, 4.0, 224.0]),
    ("bmf8-e4m3", [0.02, -0.01, 0.0], [0.01953125, -0.009765625, 0.0]),
    ("nvfp4", [6.0, 3.0, 1.0, 0.2], [6.0, 3.0, 1.0, 0.0]),
    ("nf4-g64", [1.0, -1.0, 0.04, 0.0], [1.0, -1.0, 0.07958029955625534, 0.0]),
]


@pytest.mark.parametrize(("text", "x", "want"), WORKED)
def test_worked_example(text, x, want):
    got = quantize(np.array(x, dtype=np.float32), text)
    if text == "int4":
        want = (np.round(np.float32(x) / np.float32(1.0546875)) * np.float32(1.0546875)).tolist()
    np.testing.assert_array_equal(got, np.array(want, dtype=np.float32))


def test_blocks_lie_along_the_axis_and_tails_are_short():
    x = np.zeros((3, 20), dtype=np.float32)
    x[0, 0], x[0, 16], x[1, 3] = 64.0, 1.0, 1.0
    along = quantize(x, "bfp4", axis=-1)
    np.testing.assert_array_equal(along, x)  # each maximum has a block of its own
    across = quantize(x, "bfp4", axis=0)
    np.testing.assert_array_equal(across, x)
    together = quantize(x.reshape(-1)[:16] + np.float32(1), "bfp4")
    assert together[1] == 0  # 65 and 1 share a step of 16


def test_a_two_dimensional_block_spans_rows():
    x = np.ones((4, 16), dtype=np.float32)
    x[0, 0] = 64.0
    assert quantize(x, "bfp4(block=4x16)")[3, 5] == 0
    assert quantize(x, "bfp4")[3, 5] == 1


def test_an_input_dtype_that_cannot_hold_the_result_gets_the_largest_it_holds():
    x = np.array([65504.0], dtype=np.float16)
    assert quantize(x, "minifloat-e5m2")[0] == 57344
    assert quantize(x, "log8")[0] == 32768
    x = np.array([3e38], dtype=np.float32)
    assert quantize(x, "log9")[0] == 2.0**127
