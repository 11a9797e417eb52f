import math

import numpy as np
import pytest
import torch

from mpq.profiling.histogram import NUM_BINS, PIECE, RESOLUTION, Histogram

generator = torch.Generator().manual_seed(0)


def heavy(size=50_000):
    """Values over many binades, of both signs."""
    x = torch.randn(size, generator=generator)
    return x * torch.randn(size, generator=generator).mul(3).exp()


def test_every_value_is_counted_in_a_bin_that_holds_it():
    x = heavy()
    bins = Histogram.of(x).bins
    edges = np.append(bins.inner, bins.outer[-1])
    values = x.double().numpy()
    for sign, counts in ((1, bins.positive), (-1, bins.negative)):
        some = np.abs(values[np.sign(values) == sign])
        at = np.searchsorted(edges, some, side="right") - 1
        assert (some >= bins.inner[at]).all()
        assert (some < bins.outer[at]).all()
        np.testing.assert_array_equal(np.bincount(at, minlength=len(counts)), counts)
    assert ((bins.outer - bins.inner) <= RESOLUTION * np.maximum(bins.inner, 2.0**-126)).all()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.25, 0.5, 0.99, 0.999, 0.9999, 1.0])
def test_quantiles_are_within_their_bound_of_numpys(share):
    x = heavy()
    exact = np.quantile(x.abs().double().numpy(), share, method="inverted_cdf")
    assert abs(Histogram.of(x).quantile(share) - exact) <= RESOLUTION * exact


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 1.0), (-300.0, 5.0), (0.3, 40.0), (-50.0, -0.3), (-1e30, 1e30)]
)
def test_shares_outside_are_within_the_bins_of_their_bounds(low, high):
    x = heavy().double()
    exact = float(((x < low) | (x > high)).double().mean())
    reach = [bound * (1 + sign * RESOLUTION) for bound in (low, high) for sign in (-1, 1)]
    near = sum(
        float(((x >= min(a, b)) & (x <= max(a, b))).double().mean())
        for a, b in (reach[:2], reach[2:])
    )
    assert near < 0.1
    assert abs(Histogram.of(x).share_outside(low, high) - exact) <= near


def test_bins_count_by_the_part_that_is_outside():
    x = torch.linspace(1, 1 + 1 / 32, 1001)[:-1]  # one bin, evenly filled
    histogram = Histogram.of(torch.cat([x, -x]))
    assert histogram.share_outside(-math.inf, 1 + 1 / 128) == pytest.approx(0.375)
    assert histogram.share_outside(-1 - 1 / 128, math.inf) == pytest.approx(0.375)


def test_merging_is_counting_all_values_at_once():
    x = heavy(2 * PIECE + 5)
    parts = [Histogram.of(part) for part in torch.split(x, 60_000)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    np.testing.assert_array_equal(merged.counts, Histogram.of(x).counts)
    assert merged.counts.sum() == len(x)
    assert merged.counts.shape == (NUM_BINS,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_count_as_their_float32_values(dtype):
    x = heavy(1000).clamp(-1000, 1000).to(dtype)
    np.testing.assert_array_equal(Histogram.of(x).counts, Histogram.of(x.float()).counts)


def test_values_that_are_not_finite_are_told_and_left_out():
    x = torch.tensor([1.0, -2.0, math.inf, -math.inf, math.nan, 3.4028234e38])
    histogram = Histogram.of(x)
    assert histogram.num_nonfinite == 3
    assert histogram.bins.positive.sum() + histogram.bins.negative.sum() == 3
    assert histogram.quantile(1.0) <= 2.0**128
    only = Histogram.of(torch.tensor([math.nan]))
    assert math.isnan(only.quantile(0.5))
    assert math.isnan(only.share_outside(0, 1))


def test_zeros_stay_zero():
    histogram = Histogram.of(torch.tensor([0.0, -0.0, 0.0, 1.0]))
    assert histogram.quantile(0.5) == 0
    assert 1 <= histogram.quantile(0.999) < 1 + RESOLUTION
