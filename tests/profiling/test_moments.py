import math
from functools import reduce
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from mpq.profiling.moments import PIECE, Moments

generator = torch.Generator().manual_seed(0)


def randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=generator)


def assert_matches(moments, x, rtol=1e-11):
    """Compares with numpy and scipy over all values at once."""
    values = x.double().numpy().ravel()
    assert moments.count == values.size
    assert (moments.low, moments.high) == (values.min(), values.max())
    assert moments.absmax == np.abs(values).max()
    np.testing.assert_allclose(moments.mean, values.mean(), rtol=rtol, atol=1e-15)
    np.testing.assert_allclose(moments.variance, values.var(), rtol=rtol)
    np.testing.assert_allclose(moments.kurtosis, stats.kurtosis(values), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_of_any_shape_and_dtype_gives_numpys_numbers(dtype):
    x = randn(3, 5, 7).to(dtype)
    assert_matches(Moments.of(x), x)
    assert_matches(Moments.of(x.transpose(0, 2)), x)


@pytest.mark.parametrize("size", [1, 2, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 17])
def test_large_tensors_are_joined_from_pieces(size):
    x = randn(size).exp() if size > 2 else torch.arange(size, dtype=torch.float64)
    if size == 1:
        assert (Moments.of(x).variance, Moments.of(x).count) == (0.0, 1)
        assert math.isnan(Moments.of(x).kurtosis)
    else:
        assert_matches(Moments.of(x), x)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 1000, 7, 3000), (PIECE + 5, 3, 40_000)])
def test_the_order_of_merging_does_not_matter(sizes):
    parts = [randn(size) * 3.0**index + index for index, size in enumerate(sizes)]
    found = [
        reduce(Moments.merge, map(Moments.of, order), Moments()) for order in permutations(parts)
    ]
    for moments in found:
        assert_matches(moments, torch.cat(parts))
    pair = Moments.of(parts[0]).merge(Moments.of(parts[1]))
    tree = pair.merge(reduce(Moments.merge, map(Moments.of, parts[2:])))
    assert_matches(tree, torch.cat(parts))


@pytest.mark.parametrize("offset", [1e4, -1e8])
def test_a_large_offset_costs_no_digits(offset):
    noise = 1e-2 * randn(300_000)
    x = noise + offset
    exact = (x - offset).numpy()  # exact: x and offset are within a factor of two
    moments = reduce(Moments.merge, map(Moments.of, torch.split(x, 777)))
    np.testing.assert_allclose(moments.variance, exact.var(), rtol=1e-6)
    np.testing.assert_allclose(moments.kurtosis, stats.kurtosis(exact), atol=1e-5)
    naive = float((x**2).mean() - x.mean() ** 2)
    assert abs(naive / exact.var() - 1) > 1e-5, "otherwise this test could not fail"


def test_skewed_tails_merge_like_scipys_fourth_moment():
    parts = [randn(5_000).exp() * 2.0**index for index in range(6)]
    x = torch.cat(parts)
    moments = reduce(Moments.merge, map(Moments.of, parts))
    assert_matches(moments, x)
    third = ((x - x.mean()) ** 3).sum()
    np.testing.assert_allclose(moments.m3, float(third), rtol=1e-10)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_values_that_are_not_finite_do_not_count(bad):
    x = randn(2 * PIECE)
    spoilt = x.clone()
    spoilt[[5, PIECE + 3]] = bad
    kept = spoilt[spoilt.isfinite()]
    assert len(kept) == len(x) - 2
    assert_matches(Moments.of(spoilt), kept)
    assert Moments.of(torch.full((9,), bad)) == Moments()


def test_nothing_has_no_variance_and_changes_nothing():
    empty = Moments.of(torch.empty(0, 4))
    assert empty == Moments()
    assert math.isnan(empty.variance)
    assert math.isnan(empty.kurtosis)
    some = Moments.of(randn(10))
    assert some.merge(empty) == empty.merge(some) == some


def test_one_value_over_and_over_has_no_kurtosis():
    moments = Moments.of(torch.full((1000,), 0.1))
    assert moments.variance == 0
    assert math.isnan(moments.kurtosis)
