"""The statistics profile: range, percentiles, kurtosis and outliers of every site's values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mpq.plans.site import Site
from mpq.profiling.values import Values, ValueTable, facts_of

PERCENTILES = (50.0, 99.0, 99.9, 99.99)
"""Of the magnitudes."""

OUTLIER_DEVIATIONS = 6.0
"""A value is an outlier so many standard deviations from the mean.

Dettmers et al., "LLM.int8()" (NeurIPS 2022), section 4.1, take a magnitude of 6; in standard
deviations it holds for tensors of any scale.
"""


def statistics_rows(table: ValueTable, sites: Sequence[Site]) -> list[dict[str, Any]]:
    """One row of `statistics.csv` for each of the sites that a value came by at, in their order.

    The columns are `site`, `role`, `kind`, `block` (-1 outside of blocks), `count` (of finite
    values), `nonfinite` (infinities and NaN, which do not count), `min`, `max`, `mean`, `std`,
    `absmax`, `abs_p50` to `abs_p99.99` (percentiles of the magnitudes, each off by less than a
    32nd of itself), `kurtosis` (0 for a normal distribution; empty where all values are one),
    `outlier_share` (see `outlier_share`) and what the table was measured on.
    """
    return [
        {
            "site": site.name,
            "role": site.role,
            "kind": site.kind,
            "block": site.block,
            **_columns(values),
            **facts_of(table),
        }
        for site in sites
        if (values := table.values.get(site.name)) is not None
    ]


def _columns(values: Values) -> dict[str, Any]:
    moments, histogram = values.moments, values.histogram
    columns = {
        "count": moments.count,
        "nonfinite": histogram.num_nonfinite,
        "min": moments.low,
        "max": moments.high,
        "mean": moments.mean,
        "std": math.sqrt(moments.variance),
        "absmax": moments.absmax,
        **{
            f"abs_p{percent:g}": min(histogram.quantile(percent / 100), moments.absmax)
            for percent in PERCENTILES
        },
        "kurtosis": moments.kurtosis,
        "outlier_share": outlier_share(values),
    }
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in columns.items()
    }


def outlier_share(values: Values) -> float:
    """The share of values more than six standard deviations from their mean.

    From the histogram, so it is off by less than the share of values in the two bins that the
    bounds fall into, each a 32nd of its binade wide.
    """
    moments = values.moments
    if not moments.m2:
        return 0.0
    reach = OUTLIER_DEVIATIONS * math.sqrt(moments.variance)
    return values.histogram.share_outside(moments.mean - reach, moments.mean + reach)
