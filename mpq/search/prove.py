"""The proof: plans judged on held-out windows, with intervals, against the uniform plans.

The windows that the search looked at are never those that a table quotes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpq.search.objective import Objective
from mpq.search.space import Choices, FloatArray

RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A plan that is to be proven.

    Attributes:
        role: "uniform", "allocation", "best" or "front".
        choices: The plan.
        trial: Number of the trial it comes from; None when no trial had it.
    """

    role: str
    choices: Choices
    trial: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The plans at the cost of one uniform plan, on held-out windows.

    Attributes:
        anchor: Name of the uniform plan.
        uniform: Its measure.
        allocation: Of the additive optimum at no greater cost.
        found: Of the best plan of the search at no greater cost.
        gain_over_uniform: Mean over windows of how much better than uniform `returned` is.
        gain_over_allocation: The same against the allocation.
        returned: Which plan stands: "found", or the baseline that the search did not beat.
        choices: That plan.
    """

    anchor: str
    uniform: Interval
    allocation: Interval
    found: Interval
    gain_over_uniform: Interval
    gain_over_allocation: Interval
    returned: str
    choices: Choices


def bootstrap_mean(values: FloatArray, *, confidence: float, seed: int) -> Interval:
    """The mean of `values` `[N]` and its percentile bootstrap interval.

    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979); percentile method,
    2,000 resamples of windows.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values), size=(RESAMPLES, len(values)))
    means = values[picks].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


def compare(
    anchor: str,
    plans: Mapping[str, Choices],
    windows: Mapping[Choices, FloatArray],
    *,
    quality: Objective,
    confidence: float,
    seed: int,
) -> Comparison:
    """What held-out windows say of the uniform plan, the allocation and the plan that was found.

    The search's plan stands only if its held-out mean is better than both baselines'; otherwise
    the better baseline does.

    Args:
        anchor: Name of the uniform plan.
        plans: "uniform", "allocation" and "found" -> plan.
        windows: Plan -> the measure of each held-out window.
        quality: The objective that the windows measure.
        confidence: Of the intervals, such as 0.95.
        seed: Of the bootstrap.
    """
    sign = 1.0 if quality.direction == "minimize" else -1.0
    measured = {role: windows[choices] for role, choices in plans.items()}
    # On equal means the simpler plan stands: uniform before allocation before found.
    returned = min(
        ("uniform", "allocation", "found"), key=lambda role: sign * float(measured[role].mean())
    )

    def interval(values: FloatArray) -> Interval:
        return bootstrap_mean(values, confidence=confidence, seed=seed)

    def gain(role: str) -> Interval:
        return interval(sign * (measured[role] - measured[returned]))

    return Comparison(
        anchor=anchor,
        uniform=interval(measured["uniform"]),
        allocation=interval(measured["allocation"]),
        found=interval(measured["found"]),
        gain_over_uniform=gain("uniform"),
        gain_over_allocation=gain("allocation"),
        returned=returned,
        choices=plans[returned],
    )


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, ends included."""
    if len(items) <= count:
        return list(items)
    picks = np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))
    return [items[int(pick)] for pick in picks]
