"""One trial: from a sampler's parameters, or the queue, to a plan, and from there to values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mpq.cost import COST_MEASURES, Cost
from mpq.search.front import TrialRecord
from mpq.search.guided import Knob, decode
from mpq.search.interrupts import Interrupts
from mpq.search.objective import (
    Evaluate,
    Objective,
    UserFunction,
    objective_values,
    quality_objective,
)
from mpq.search.space import Choices, FloatArray, Space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from mpq.plans.plan import Plan

RESULT = "result"
"""User attribute of a finished trial: all that a `TrialRecord` holds."""

RUNGS = 8
"""Parts that the windows are cut into when a pruner may stop a trial between them."""


def direct_params(space: Space, choices: Choices) -> dict[str, int]:
    """A plan as parameters of the direct space: one ordered integer a group."""
    names = (f"choice.{group.name}" for group in space.groups)
    return dict(zip(names, choices, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Turns trials into results.

    Attributes:
        space: What is searched.
        objectives: In the order of the study.
        knobs: What a guided trial sets; empty in the direct space.
        traded: Resources whose cost is an objective.
        limits: Resource -> the most bits that the budgets allow.
        evaluate: Measures a plan.
        functions: The objectives that are functions of the user's.
        pruner: "none", or which of `samplers.PRUNERS` may stop a sampler's trial.
        interrupts: Told while a plan is measured: the only part of a trial that may be cut short.
    """

    space: Space
    objectives: tuple[Objective, ...]
    knobs: tuple[Knob, ...]
    traded: tuple[str, ...]
    limits: Mapping[str, int]
    evaluate: Evaluate
    functions: Mapping[str, UserFunction]
    pruner: str
    interrupts: Interrupts = field(default_factory=Interrupts)

    def judge(
        self, trial: Trial, queued: Mapping[str, Any] | None, records: Sequence[TrialRecord]
    ) -> tuple[dict[str, Any], bool]:
        """What `RESULT` holds, but for the times; and whether the pruner stopped the trial.

        Args:
            trial: Whose parameters are drawn and whose constraints are set.
            queued: What the queue says of it: source, choices, parent, anchor.
            records: Finished trials: a plan among them is not measured again.
        """
        choices = self._draw(trial, queued)
        plan = self.space.plan(choices)
        cost = self.space.cost(choices)
        result: dict[str, Any] = {
            **{"source": "sampler", **(queued or {})},
            "choices": list(choices),
            "digest": plan.digest,
            "costs": {name: float(getattr(cost, name)) for name in COST_MEASURES},
            "feasible": True,
            "evaluated": True,
            "reused": False,
        }
        for resource, limit in self.limits.items():
            excess = self.space.bits(resource, choices) - limit
            trial.set_constraint(resource, excess / max(1, self.space.values[resource]))
            result["feasible"] &= excess <= 0
        if not result["feasible"]:
            result["evaluated"] = False
            result["values"] = self._stand_in(choices, cost, records)
            return result, False
        known = next((r for r in records if r.choices == choices and r.is_candidate), None)
        if known is not None:
            result |= {"reused": True, "values": list(known.values)}
            result["windows"] = None if known.windows is None else known.windows.tolist()
            self._report(trial, known.windows)
            return result, False
        windows, pruned = self._measure(trial, plan, result["source"] == "sampler")
        with self.interrupts.allowed():
            functions = {name: float(function(plan)) for name, function in self.functions.items()}
        result["values"] = list(objective_values(self.objectives, cost, windows, functions))
        quality = quality_objective(self.objectives)
        if quality is not None and quality.source == "windows":
            result["windows"] = windows[quality.measured].tolist()
        return result, pruned

    def rungs(self) -> list[tuple[int, int]]:
        """Ranges of windows, in whole batches, that a pruner sees one after the other."""
        batch = self.evaluate.batch_size
        num_batches = -(-self.evaluate.num_windows // batch)
        ends = np.unique(np.linspace(0, num_batches, min(RUNGS, num_batches) + 1).round())
        edges = [min(int(end) * batch, self.evaluate.num_windows) for end in ends]
        return list(itertools.pairwise(edges))

    def _draw(self, trial: Trial, queued: Mapping[str, Any] | None) -> Choices:
        """The trial's parameters, and the plan that they (or the queue) name."""
        if self.knobs:
            params = {k.name: trial.suggest_float(k.name, k.low, k.high) for k in self.knobs}
            if queued is None:
                return decode(self.space, params, self.traded, self.limits)
            return tuple(queued["choices"])
        return tuple(
            trial.suggest_int(f"choice.{group.name}", 0, len(group.candidates) - 1)
            for group in self.space.groups
        )

    def _measure(
        self, trial: Trial, plan: Plan, may_prune: bool
    ) -> tuple[dict[str, FloatArray], bool]:
        """Measure -> values of the windows seen, and whether the pruner stopped the trial."""
        if self.pruner == "none":
            with self.interrupts.allowed():
                return dict(self.evaluate(plan)), False
        measured = self.objectives[0].measured
        parts: list[Mapping[str, FloatArray]] = []
        for first, last in self.rungs():
            with self.interrupts.allowed():
                parts.append(self.evaluate(plan, first, last))
            seen = _joined(parts)
            self._report(trial, seen[measured], since=first)
            if may_prune and last < self.evaluate.num_windows and trial.should_prune():
                return seen, True
        return seen, False

    def _report(self, trial: Trial, windows: FloatArray | None, since: int = 0) -> None:
        """Tells the pruner of every rung that ends among these windows, from `since` on."""
        if self.pruner == "none" or windows is None:
            return
        for step, (first, last) in enumerate(self.rungs(), start=1):
            if since < last <= len(windows):
                # Wilcoxon's test pairs the rungs themselves, the other pruners compare what
                # was seen so far.
                shown = windows[first if self.pruner == "wilcoxon" else 0 : last]
                trial.report(self.objectives[0].reduce(shown), step)

    def _stand_in(
        self, choices: Choices, cost: Cost, records: Sequence[TrialRecord]
    ) -> list[float]:
        """Values for a plan over budget, which is not run: its costs, and the worst of the rest.

        Samplers rank such trials by how far they are over budget; Gaussian processes want a
        finite number all the same.
        """
        values = []
        for index, objective in enumerate(self.objectives):
            measured = [r.values[index] for r in records if r.is_candidate]
            if objective.source == "cost":
                values.append(float(getattr(cost, objective.name)))
            elif measured:
                values.append(
                    max(measured) if objective.direction == "minimize" else min(measured)
                )
            else:
                values.append(self.space.predicted_damage(choices))
        return values


def _joined(parts: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def read_record(trial: FrozenTrial) -> TrialRecord:
    """The record of a finished trial."""
    result = trial.user_attrs[RESULT]
    windows = result.get("windows")
    return TrialRecord(
        number=trial.number,
        state="pruned" if trial.state.name == "PRUNED" else "complete",
        source=result["source"],
        choices=tuple(result["choices"]),
        digest=result["digest"],
        values=tuple(result["values"]),
        costs=result["costs"],
        is_feasible=result["feasible"],
        is_evaluated=result["evaluated"],
        is_reused=result["reused"],
        seconds=result["seconds"],
        forward_seconds=result["forward_seconds"],
        windows=None if windows is None else np.array(windows, dtype=np.float64),
        params=dict(trial.params),
        parent=result.get("parent"),
        anchor=result.get("anchor", ""),
    )
