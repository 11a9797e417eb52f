"""The proof: plans judged on held-out windows, with intervals, against the uniform plans.

The windows that the search looked at are never those that a table quotes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpq.search.front import TrialRecord, pareto_front
from mpq.search.guided import optimum
from mpq.search.objective import Evaluate, Objective, make_objectives, quality_objective
from mpq.search.refine import AT_BUDGET, lineages
from mpq.search.seeds import bits_of, tightest, uniform_within
from mpq.search.space import Choices, FloatArray, Space

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
        is_contested: False where all three are one plan, as at the narrowest uniform plan.
    """

    anchor: str
    uniform: Interval
    allocation: Interval
    found: Interval
    gain_over_uniform: Interval
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
        is_contested=len(set(plans.values())) > 1,
    )


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
        comparisons: One for each uniform plan with plans at its cost, narrowest first.
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
    compared: Sequence[str],
    limits: Mapping[str, int],
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
        compared: Resources in which a plan must not cost more than what it is compared with.
        limits: Resource -> the most bits that the budgets allow.
        plans: How many plans of the front are judged, beside baselines and what beats them.
        confidence: Of the intervals.
        seed: Of the bootstrap.
        on_plan: Told (plans judged, plans to judge).
    """
    quality = quality_objective(objectives)
    if quality is None or quality.source != "windows":
        quality = make_objectives(["kl"])[0]
    trials = {record.choices: record.number for record in reversed(records)}
    trios = _trios(space, records, objectives, compared=compared, limits=limits)
    contenders: dict[Choices, Contender] = {}
    for trio in trios.values():
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
            for anchor, trio in trios.items()
        ),
    )


def _trios(
    space: Space,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    *,
    compared: Sequence[str],
    limits: Mapping[str, int],
) -> dict[str, dict[str, Choices]]:
    """Uniform plan -> that plan, the optimum at its cost, and the best that was found there."""
    quality = quality_objective(objectives)
    if quality is None:
        return {}
    found = {
        lineage.anchor: lineage.best.choices
        for lineage in lineages(
            space, records, objectives, quality=quality, compared=compared, limits=limits
        )
    }
    uniform = uniform_within(space, limits)
    if AT_BUDGET in found:
        # Budgets alone bound the search: its rival is the widest uniform plan that keeps them.
        allocation = optimum(space, space.damage, limits)
        widest = [*uniform.values(), allocation][max(0, len(uniform) - 1)]
        trio = {"uniform": widest, "allocation": allocation, "found": found[AT_BUDGET]}
        return {[*uniform, AT_BUDGET][max(0, len(uniform) - 1)]: trio}
    trios = {}
    for anchor, choices in uniform.items():
        if anchor in found:
            bounds = tightest(bits_of(space, choices, compared), limits)
            allocation = optimum(space, space.damage, bounds)
            trios[anchor] = {
                "uniform": choices,
                "allocation": allocation,
                "found": found[anchor],
            }
    return trios
