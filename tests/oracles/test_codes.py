"""The oracle's code sets, proven against ml_dtypes, gfloat and the published constants."""

import gfloat
import gfloat.formats as gf
import ml_dtypes
import numpy as np
import pytest
import torch
from scipy.stats import norm

from tests.oracles import codes as sets

OUTSIDE = {
    "e4m3": (sets.ocp_e4m3(), ml_dtypes.float8_e4m3fn, 8, gf.format_info_ocp_e4m3),
    "e5m2": (sets.ieee(5, 2), ml_dtypes.float8_e5m2, 8, gf.format_info_ocp_e5m2),
    "e3m2": (sets.minifloat(3, 2), ml_dtypes.float6_e3m2fn, 6, gf.format_info_ocp_e3m2),
    "e2m3": (sets.minifloat(2, 3), ml_dtypes.float6_e2m3fn, 6, gf.format_info_ocp_e2m3),
    "e2m1": (sets.minifloat(2, 1), ml_dtypes.float4_e2m1fn, 4, gf.format_info_ocp_e2m1),
    "ieee e4m3": (sets.ieee(4, 3), ml_dtypes.float8_e4m3, 8, None),
    "ieee e3m4": (sets.ieee(3, 4), ml_dtypes.float8_e3m4, 8, None),
}


def finite(values):
    values = np.asarray(values, dtype=np.float64)
    return sorted(set(values[np.isfinite(values)].tolist()))


@pytest.mark.parametrize("name", OUTSIDE)
def test_codes_are_those_of_ml_dtypes_and_gfloat(name):
    codes, dtype, width, info = OUTSIDE[name]
    patterns = np.arange(2**width, dtype=np.uint8)
    assert list(codes.values) == finite(patterns.view(dtype).astype(np.float64))
    if info is not None:
        decoded = [gfloat.decode_float(info, code).fval for code in range(2**width)]
        assert list(codes.values) == finite(decoded)


@pytest.mark.parametrize("name", OUTSIDE)
def test_nearest_rounds_as_ml_dtypes_casts(name):
    codes, dtype, _, _ = OUTSIDE[name]
    for x in grid(codes):
        got = codes.nearest(float(x))
        assert got == float(np.float32(x).astype(dtype)), x


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1"])
def test_nearest_rounds_and_saturates_as_gfloat_does(name):
    codes, _, _, info = OUTSIDE[name]
    beyond = [codes.largest * factor for factor in (1.01, 1.5, 100.0)]
    for x in [*grid(codes), *beyond, *(-b for b in beyond)]:
        want = gfloat.round_float(info, float(x), gfloat.RoundMode.TiesToEven, sat=True)
        assert codes.nearest(float(x)) == want, x


def grid(codes):
    """Codes, the points midway between neighbours, and one float32 step to each side of those."""
    values = np.array(codes.values, dtype=np.float32)
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    points = np.concatenate([values, middles])
    inner = np.concatenate(
        [points, np.nextafter(points, np.float32(9e9)), np.nextafter(points, np.float32(-9e9))]
    )
    return inner[np.abs(inner) <= codes.largest]


def test_ocp_int8_is_that_of_gfloat():
    info = gf.format_info_ocp_int8
    decoded = {gfloat.decode_float(info, code).fval for code in range(256)}
    assert set(sets.twos_complement(8, 6).values) == decoded


@pytest.mark.parametrize(
    ("codes", "dtype"), [(sets.ieee(5, 10), torch.float16), (sets.ieee(8, 7), torch.bfloat16)]
)
def test_sixteen_bit_floats_are_torchs(codes, dtype):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    assert list(codes.values) == finite(patterns.to(torch.float64).numpy())
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 10
    want = x.to(dtype).double().tolist()
    assert [codes.nearest(v) for v in x.tolist()] == want


def test_normal_float_is_built_from_the_quantiles_of_the_normal_distribution():
    # Dettmers et al. 2023, section 3 and appendix E: an offset of 0.9677083, 8 positive and 7
    # negative quantiles around an exact zero, over the largest of them.
    offset = 0.9677083
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    table = np.sort(np.concatenate([positive, [0.0], negative]))
    np.testing.assert_allclose(sets.normal_float().values, table / table.max(), atol=2e-7)


def test_ranges_that_the_design_and_the_ancestor_state():
    assert sets.minifloat(4, 3).largest == 480
    assert sets.ocp_e4m3().largest == 448
    assert sets.denormalised(4, 3).largest == 224
    assert len([v for v in sets.denormalised(4, 3).values if v >= 0]) == 68
    assert len([v for v in sets.denormalised(2, 1).values if v >= 0]) == 5
    assert sets.sign_magnitude(6).largest == 31
    assert sets.twos_complement(8, 4).values[0] == -8
    assert 0.0 in sets.logarithmic(8).values
    assert 0.0 not in sets.logarithmic(8, zero=False).values


@pytest.mark.parametrize(
    "codes",
    [sets.denormalised(4, 3), sets.minifloat(4, 3), sets.logarithmic(6), sets.sign_magnitude(5)],
)
def test_the_parity_of_neighbouring_codes_alternates(codes):
    positive = [even for value, even in zip(codes.values, codes.even, strict=True) if value >= 0]
    assert positive == [index % 2 == 0 for index in range(len(positive))]
