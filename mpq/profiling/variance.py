"""The variance profile: how far the values of every weight and activation are spread, by layer.

It shows which tensors a format without a scale of its own cannot hold side by side: after Zhang et
al., "Revisiting Block-based Quantisation: What is Important for Sub-8-bit LLM Inference?" (EMNLP
2023), section 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpq.plans.site import Site
from mpq.profiling.values import ValueTable, facts_of


def variance_rows(table: ValueTable, sites: Sequence[Site]) -> list[dict[str, Any]]:
    """One row of `variance.csv` for each of the sites that a value came by at, in their order.

    The columns are `site`, `role`, `kind`, `block` (-1 outside of blocks), `count` (of finite
    values), `nonfinite` (infinities and NaN, which do not count), `mean`, `variance`
    (Σ (x - mean)² / count) and what the table was measured on.
    """
    return [
        {
            "site": site.name,
            "role": site.role,
            "kind": site.kind,
            "block": site.block,
            "count": values.moments.count,
            "nonfinite": values.histogram.num_nonfinite,
            "mean": values.moments.mean,
            "variance": values.moments.variance,
            **facts_of(table),
        }
        for site in sites
        if (values := table.values.get(site.name)) is not None
    ]
