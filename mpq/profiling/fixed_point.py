"""Static fixed point from statistics: the fraction width of every site, for a given width.

Two rules. `mse` takes the fraction with the least squared error over the values that were seen,
so it may saturate a few large ones to resolve the others: Sung, Shin & Hwang, "Resiliency of Deep
Neural Networks under Quantization" (2015), section 3, choose steps so. `range` takes the largest
fraction under which nothing saturates, floor(log2((2^(width-1) - 1) / absmax)), as llm-mixed-q
(Zhang et al., EMNLP 2023) does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from mpq.errors import PlanError
from mpq.plans.plan import Plan
from mpq.plans.site import Site
from mpq.profiling.histogram import Histogram
from mpq.profiling.values import Values, ValueTable

Rule = Literal["mse", "range"]
RULES: tuple[Rule, ...] = get_args(Rule)

LARGEST_FRACTION = 126
"""Of either sign: what a fixed point may name (float32 holds its step)."""

_DEEPEST = 32
"""Fractions above the one of the range that `mse` looks at: 2^-32 of the range is all it keeps."""


def fixed_point_plan(
    table: ValueTable, sites: Sequence[Site], *, width: int, rule: Rule = "mse", model: str = ""
) -> Plan:
    """A plan that gives `sites` fixed points of one width, each with its own fraction.

    Args:
        table: What was seen of their values.
        sites: Which sites; those that no value came by at are left out.
        width: Bits of a value, sign included.
        rule: How a fraction is chosen, one of `RULES`.
        model: Id of the model, kept in the plan.

    Raises:
        FormatError: There is no fixed point of that width.
        PlanError: No site is left, or `rule` is none of `RULES`.
    """
    if rule not in RULES:
        raise PlanError(
            f"a fraction is chosen by one of {', '.join(RULES)}; {rule!r} is none of them"
        )
    formats = {
        site.name: f"fixed{width}.{choose_fraction(values, width, rule)}"
        for site in sites
        if (values := table.values.get(site.name)) is not None
    }
    if not formats:
        raise PlanError(
            "a fixed-point plan needs at least one site whose values were seen, and there is none "
            f"among {len(sites)}; profile more sites"
        )
    return Plan.of(formats, model=model, fingerprint=table.fingerprint)


def choose_fraction(values: Values, width: int, rule: Rule = "mse") -> int:
    """The fraction width f of a fixed point of `width` bits, whose step is 2^-f.

    Of fractions that are equally good, the smallest, whose range is the widest. Values that are
    all zero get the fraction of the range ±1.
    """
    widest = range_fraction(values.moments.absmax, width)
    if rule == "range" or not values.moments.absmax:
        return widest
    fractions = range(widest, min(widest + _DEEPEST, LARGEST_FRACTION) + 1)
    return min(fractions, key=lambda f: squared_error(values.histogram, width, f))


def range_fraction(absmax: float, width: int) -> int:
    """The largest f with absmax · 2^f <= 2^(width-1) - 1, within ±`LARGEST_FRACTION`."""
    if not absmax:
        return width - 1
    largest = 2.0 ** (width - 1) - 1
    found = math.floor(math.log2(largest / absmax))
    # The logarithm is rounded; the comparison is not.
    found += (math.ldexp(absmax, found + 1) <= largest) - (math.ldexp(absmax, found) > largest)
    return max(-LARGEST_FRACTION, min(found, LARGEST_FRACTION))


def squared_error(histogram: Histogram, width: int, fraction: int) -> float:
    """Σ (x - fixed(x))² over the values of a histogram, taken as uniform within each bin.

    Under that assumption it is exact. Codes run from -2^(width-1) to 2^(width-1) - 1, in steps of
    2^-fraction. Bins and steps are powers of two apart: a bin narrower than a step lies on one
    side of a rounding border and shares a code, a wider one holds whole steps, whose mean squared
    error is step² / 12.
    """
    step = 2.0**-fraction
    bins = histogram.bins
    width_of = bins.outer - bins.inner
    total = 0.0
    for counts, codes in (
        (bins.positive, 2.0 ** (width - 1) - 1),
        (bins.negative, 2.0 ** (width - 1)),
    ):
        limit = codes * step
        centre = (bins.inner + bins.outer) / 2
        rounded = np.minimum(np.rint(centre / step) * step, limit)
        shared = (centre - rounded) ** 2 + width_of**2 / 12
        # Wide bins: whole steps up to the largest code, and what saturates beyond it.
        border = np.clip(limit, bins.inner, bins.outer)
        resolved = (border - bins.inner) / width_of * step**2 / 12
        beyond = ((bins.outer - limit) ** 3 - (border - limit) ** 3) / (3 * width_of)
        error = np.where(width_of < step, shared, resolved + beyond)
        total += float(error @ counts)
    return total
