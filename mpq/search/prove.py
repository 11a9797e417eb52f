"""The proof: plans judged on held-out windows, with intervals, against the uniform plans.

The windows that the search looked at are never those that a table quotes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpq.search.anchors import Anchor
from mpq.search.front import TrialRecord, pareto_front
from mpq.search.objective import Evaluate, Objective, make_objectives, quality_objective
from mpq.search.refine import lineages
from mpq.search.space import Choices, FloatArray, Space

RESAMPLES = 2000

ROLES = ("uniform", "allocation", "found")
"""What competes at an anchor, the simplest first."""


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
    """The plans at one anchor, on held-out windows.

    Attributes:
        anchor: Name of the anchor.
        rival: Format of the widest uniform plan that costs no more; empty where there is none.
        uniform: That plan's measure; None where there is none.
        allocation: Of the additive optimum at no greater cost.
        found: Of the best plan of the search at no greater cost.
        gain_over_uniform: Mean over windows of how much better than uniform `returned` is; None
            where there is no uniform plan.
        gain_over_allocation: The same against the allocation.
        returned: Which plan stands: "found", or the baseline that the search did not beat.
        choices: That plan.
        is_contested: False where all are one plan, as at the narrowest uniform plan.
    """

    anchor: str
    rival: str
    uniform: Interval | None
    allocation: Interval
    found: Interval
    gain_over_uniform: Interval | None
    gain_over_allocation: Interval
    returned: str
    choices: Choices
    is_contested: bool


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
    anchor: Anchor,
    plans: Mapping[str, Choices],
    windows: Mapping[Choices, FloatArray],
    *,
    quality: Objective,
    confidence: float,
    seed: int,
) -> Comparison:
    """What held-out windows say of the uniform plan, the allocation and the plan that was found.

    The search's plan stands only if its held-out mean is better than the baselines'; otherwise
    the better baseline does.

    Args:
        anchor: Where they compete.
        plans: "uniform" (unless there is none), "allocation" and "found" -> plan.
        windows: Plan -> the measure of each held-out window.
        quality: The objective that the windows measure.
        confidence: Of the intervals, such as 0.95.
        seed: Of the bootstrap.
    """
    sign = 1.0 if quality.direction == "minimize" else -1.0
    measured = {role: windows[choices] for role, choices in plans.items()}
    # On equal means the simpler plan stands: uniform before allocation before found.
    returned = min(ROLES, key=lambda role: _mean_loss(measured.get(role), sign))

    def interval(values: FloatArray) -> Interval:
        return bootstrap_mean(values, confidence=confidence, seed=seed)

    def gain(role: str) -> Interval:
        return interval(sign * (measured[role] - measured[returned]))

    has_uniform = "uniform" in plans
    return Comparison(
        anchor=anchor.name,
        rival=anchor.uniform_name if has_uniform else "",
        uniform=interval(measured["uniform"]) if has_uniform else None,
        allocation=interval(measured["allocation"]),
        found=interval(measured["found"]),
        gain_over_uniform=gain("uniform") if has_uniform else None,
        gain_over_allocation=gain("allocation"),
        returned=returned,
        choices=plans[returned],
        is_contested=len(set(plans.values())) > 1,
    )


def _mean_loss(windows: FloatArray | None, sign: float) -> float:
    return math.inf if windows is None else sign * float(windows.mean())


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, ends included."""
    if len(items) <= count:
        return list(items)
    picks = np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))
    return [items[int(pick)] for pick in picks]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What held-out windows say of a search.

    Attributes:
        measure: What was measured in each window.
        num_windows: Held-out windows.
        contenders: Every plan that was judged, with its interval.
        comparisons: One for each anchor with plans there, narrowest first.
    """

    measure: str
    num_windows: int
    contenders: tuple[tuple[Contender, Interval], ...]
    comparisons: tuple[Comparison, ...]


def prove(  # noqa: PLR0913 (what was found, how to judge it, and who is told)
    space: Space,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    evaluate: Evaluate,
    *,
    anchors: Sequence[Anchor],
    plans: int,
    confidence: float,
    seed: int,
    on_plan: Callable[[int, int], None],
) -> Proof:
    """The front's plans and all baselines, judged on held-out windows.

    Args:
        space: What was searched.
        records: Finished trials.
        objectives: Of the study, one of them measured in windows.
        evaluate: Measures a plan on the held-out windows.
        anchors: Where plans compete.
        plans: How many plans of the front are judged, beside baselines and what beats them.
        confidence: Of the intervals.
        seed: Of the bootstrap.
        on_plan: Told (plans judged, plans to judge).
    """
    quality = quality_objective(objectives)
    if quality is None or quality.source != "windows":
        quality = make_objectives(["kl"])[0]
    trials = {record.choices: record.number for record in reversed(records)}
    trios = _trios(space, records, objectives, anchors)
    contenders: dict[Choices, Contender] = {}
    for _, trio in trios:
        for role, choices in trio.items():
            number = trials.get(choices)
            contenders.setdefault(choices, Contender(role=role, choices=choices, trial=number))
    for record in spread(pareto_front(records, objectives), plans):
        contender = Contender(role="front", choices=record.choices, trial=record.number)
        contenders.setdefault(record.choices, contender)
    windows: dict[Choices, FloatArray] = {}
    for choices in contenders:
        windows[choices] = evaluate(space.plan(choices))[quality.measured]
        on_plan(len(windows), len(contenders))
    return Proof(
        measure=quality.measured,
        num_windows=evaluate.num_windows,
        contenders=tuple(
            (
                contender,
                bootstrap_mean(windows[contender.choices], confidence=confidence, seed=seed),
            )
            for contender in contenders.values()
        ),
        comparisons=tuple(
            compare(anchor, trio, windows, quality=quality, confidence=confidence, seed=seed)
            for anchor, trio in trios
        ),
    )


def _trios(
    space: Space,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    anchors: Sequence[Anchor],
) -> list[tuple[Anchor, dict[str, Choices]]]:
    """Anchor, and its uniform plan, its optimum, and the best that was found there."""
    quality = quality_objective(objectives)
    if quality is None:
        return []
    found = lineages(space, records, objectives, quality=quality, anchors=anchors)
    trios = []
    for lineage in found:
        anchor = lineage.anchor
        plans = {} if anchor.uniform is None else {"uniform": anchor.uniform}
        plans |= {"allocation": anchor.allocation, "found": lineage.best.choices}
        trios.append((anchor, plans))
    return trios
