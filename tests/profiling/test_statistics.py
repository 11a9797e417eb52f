import math

import numpy as np
import pytest
import torch
from scipy import stats

from mpq.files import read_csv, write_csv
from mpq.plans.site import TOKENS, Site
from mpq.profiling.histogram import RESOLUTION
from mpq.profiling.statistics import (
    OUTLIER_DEVIATIONS,
    PERCENTILES,
    outlier_share,
    statistics_rows,
)
from mpq.profiling.values import Values, ValueTable

generator = torch.Generator().manual_seed(0)


def row_of(x, tmp_path=None):
    table = ValueTable(
        tokens=8, batch_size=8, fingerprint="f", data_sha256="d", values={"a": Values.of(x)}
    )
    names = ("a", "unseen")
    sites = [
        Site(name=name, role="input", kind="a", block=3, shape=(TOKENS, 4), group=name)
        for name in names
    ]
    (row,) = statistics_rows(table, sites)
    return row


def student(size=200_000, freedom=3):
    """Values with heavy tails, off centre."""
    normal = torch.randn(size, generator=generator)
    chi2 = torch.randn(freedom, size, generator=generator).square().sum(dim=0)
    return 0.3 + normal / (chi2 / freedom).sqrt()


def test_a_row_agrees_with_numpy_and_scipy():
    x = student()
    row, values = row_of(x), x.double().numpy()
    assert (row["site"], row["block"], row["tokens"]) == ("a", 3, 8)
    assert (row["count"], row["nonfinite"]) == (len(x), 0)
    assert (row["min"], row["max"]) == (values.min(), values.max())
    assert row["absmax"] == np.abs(values).max()
    np.testing.assert_allclose(row["mean"], values.mean(), rtol=1e-10)
    np.testing.assert_allclose(row["std"], values.std(), rtol=1e-10)
    np.testing.assert_allclose(row["kurtosis"], stats.kurtosis(values), rtol=1e-9)
    for percent in PERCENTILES:
        exact = np.percentile(np.abs(values), percent, method="inverted_cdf")
        assert row[f"abs_p{percent:g}"] == pytest.approx(exact, rel=RESOLUTION)


def test_outliers_are_those_beyond_six_standard_deviations():
    x = student()
    values = x.double().numpy()
    exact = np.mean(np.abs(values - values.mean()) > OUTLIER_DEVIATIONS * values.std())
    assert exact > 1e-3
    assert outlier_share(Values.of(x)) == pytest.approx(exact, rel=0.05)
    assert outlier_share(Values.of(torch.randn(10_000, generator=generator))) == 0


def test_percentiles_never_exceed_the_largest_value():
    row = row_of(torch.full((100,), 1.001))
    assert row["abs_p50"] <= row["abs_p99.99"] <= row["absmax"] == row["max"]


def test_what_cannot_be_said_is_left_empty(tmp_path):
    row = row_of(torch.full((10,), 2.0))
    assert (row["kurtosis"], row["outlier_share"], row["std"]) == (None, 0, 0)
    nothing = row_of(torch.full((10,), math.nan))
    assert (nothing["count"], nothing["nonfinite"]) == (0, 10)
    assert {nothing[name] for name in ("std", "kurtosis", "abs_p99")} == {None}
    write_csv(tmp_path / "statistics.csv", [nothing])
    (back,) = read_csv(tmp_path / "statistics.csv")
    assert (back["std"], back["nonfinite"]) == ("", "10")
