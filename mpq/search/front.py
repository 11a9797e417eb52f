"""Records of trials, the Pareto front among them, and the rows of trials.csv and front.csv."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mpq.search.objective import Objective
from mpq.search.space import Choices, FloatArray

State = Literal["complete", "dropped", "pruned"]
Source = Literal["uniform", "allocation", "sampler", "refine"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrialRecord:
    """One finished trial.

    Attributes:
        number: Optuna's number of the trial.
        state: "dropped" by the rungs and "pruned" trials were stopped early; their values are
            means over what they saw.
        source: Where the plan came from.
        choices: The plan.
        digest: `Plan.digest` of the plan.
        values: One an objective, each in its own unit.
        first_rung: The same on the first rung's windows, which all trials see; empty where they
            are the windows of `values`.
        costs: Every cost measure -> the plan's cost.
        is_feasible: True when every budget is kept.
        is_evaluated: False for a plan over budget: it was never run and its values are those of
            the worst trial before it, there only because samplers need a number.
        is_reused: True when an earlier trial had the same plan and its values were taken over.
        seconds: Wall time of the trial.
        forward_seconds: Its share spent in the model and the measures.
        windows: The first measured objective of each window of tokens that was seen, in their
            order, where there is such an objective.
        num_judged: Windows that this trial measured: 0 when it was reused or over budget.
        params: What the sampler set.
        parent: Number of the trial that a refinement started from.
        anchor: Format of the uniform plan that this is, or name of the anchor at which an
            optimum or a refinement works.
    """

    number: int
    state: State
    source: Source
    choices: Choices
    digest: str
    values: tuple[float, ...]
    first_rung: tuple[float, ...] = ()
    costs: Mapping[str, float]
    is_feasible: bool = True
    is_evaluated: bool = True
    is_reused: bool = False
    seconds: float = 0.0
    forward_seconds: float = 0.0
    windows: FloatArray | None = field(default=None, repr=False)
    num_judged: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    parent: int | None = None
    anchor: str = ""

    @property
    def first_values(self) -> tuple[float, ...]:
        """The objectives on the windows of the first rung: what the study holds."""
        return self.first_rung or self.values

    @property
    def is_candidate(self) -> bool:
        """True when the plan may stand on a front: measured in full, finite, within budget."""
        return self.state == "complete" and self.is_comparable

    @property
    def is_comparable(self) -> bool:
        """True when the plan was measured on all of the first rung, is finite and in budget."""
        return (
            self.state != "pruned"
            and self.is_feasible
            and self.is_evaluated
            and all(math.isfinite(value) for value in self.values)
        )


def losses(values: Sequence[float], objectives: Sequence[Objective]) -> tuple[float, ...]:
    """The values with signs such that less is better in every one."""
    return tuple(
        value if objective.direction == "minimize" else -value
        for value, objective in zip(values, objectives, strict=True)
    )


def pareto_front(
    records: Iterable[TrialRecord], objectives: Sequence[Objective]
) -> list[TrialRecord]:
    """The candidates that no other one beats in some objective and equals in the rest.

    Sorted by the objectives from the last to the first (by cost, where cost comes last); of
    trials with the same plan or the same values the earliest stands.
    """
    unique: dict[tuple[float, ...], TrialRecord] = {}
    for record in sorted(records, key=lambda record: record.number):
        if record.is_candidate:
            unique.setdefault(losses(record.values, objectives), record)
    return [unique[point] for point in sorted(_unbeaten(unique), key=lambda point: point[::-1])]


def _unbeaten(points: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The points that no other equals or undercuts in every coordinate; none is given twice."""
    kept: list[tuple[float, ...]] = []
    for point in sorted(points):
        # In lexicographic order a point can only be beaten by earlier ones; in a plane by the
        # last one kept, which is the lowest so far.
        rivals = kept[-1:] if len(point) <= 2 else kept
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in rivals):
            kept.append(point)
    return kept


def best_record(
    records: Iterable[TrialRecord], quality: Objective, objectives: Sequence[Objective]
) -> TrialRecord | None:
    """The candidate with the best value of `quality`, the earliest of equals."""
    index = objectives.index(quality)
    ranked = sorted(
        (losses(record.values, objectives)[index], record.number, record)
        for record in records
        if record.is_candidate
    )
    return ranked[0][2] if ranked else None


def trial_row(record: TrialRecord, objectives: Sequence[Objective]) -> dict[str, Any]:
    """One row of trials.csv: text, numbers and 0/1."""
    # What was never measured stays empty: a stand-in is for samplers, not for readers.
    named = {
        objective.name: value if record.is_evaluated or objective.source == "cost" else ""
        for objective, value in zip(objectives, record.values, strict=True)
    }
    return {
        "number": record.number,
        "state": record.state,
        "source": record.source,
        **named,
        **{name: value for name, value in record.costs.items() if name not in named},
        "feasible": int(record.is_feasible),
        "evaluated": int(record.is_evaluated),
        "reused": int(record.is_reused),
        "windows": record.num_judged,
        "seconds": round(record.seconds, 4),
        "forward_seconds": round(record.forward_seconds, 4),
        "overhead_seconds": round(record.seconds - record.forward_seconds, 4),
        "parent": "" if record.parent is None else record.parent,
        "anchor": record.anchor,
        "digest": record.digest,
        **{f"param.{name}": value for name, value in record.params.items()},
    }
