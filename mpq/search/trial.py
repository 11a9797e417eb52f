"""One trial: from a sampler's parameters, or the queue, to a plan, and from there to values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mpq.search.anchors import Anchor
from mpq.search.front import State, TrialRecord
from mpq.search.guided import Knob, Ladders, decode
from mpq.search.interrupts import Interrupts
from mpq.search.objective import (
    Evaluate,
    Objective,
    UserFunction,
    objective_values,
    quality_objective,
)
from mpq.search.rungs import Seen, bracket, is_hopeless
from mpq.search.space import Choices, FloatArray, Space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from mpq.plans.plan import Plan

RESULT = "result"
"""User attribute of a finished trial: all that a `TrialRecord` holds."""


def direct_params(space: Space, choices: Choices) -> dict[str, int]:
    """A plan as parameters of the direct space: one ordered integer a group."""
    names = (f"choice.{group.name}" for group in space.groups)
    return dict(zip(names, choices, strict=True))


BASELINES = ("uniform", "allocation")
"""Sources of the plans that others are measured by: judged on all windows, whatever they show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Turns trials into results.

    Attributes:
        space: What is searched.
        objectives: In the order of the study.
        knobs: What a guided trial sets; empty in the direct space.
        ladders: Resource whose cost is an objective -> budgets that trials aim at.
        limits: Resource -> the most bits that the budgets allow.
        compared: Resources in which a plan must not cost more than the one it is compared with.
        anchors: Where refinements work.
        evaluate: Measures a plan.
        functions: The objectives that are functions of the user's.
        pruner: "none", or which of `samplers.PRUNERS` may stop a sampler's trial.
        rungs: Ranges of windows that a trial sees one after the other.
        interrupts: Told while a plan is measured: the only part of a trial that may be cut short.
    """

    space: Space
    objectives: tuple[Objective, ...]
    knobs: tuple[Knob, ...]
    ladders: Ladders
    limits: Mapping[str, int]
    compared: Sequence[str]
    anchors: Sequence[Anchor]
    evaluate: Evaluate
    functions: Mapping[str, UserFunction]
    pruner: str
    rungs: Sequence[tuple[int, int]]
    interrupts: Interrupts = field(default_factory=Interrupts)

    def judge(
        self, trial: Trial, queued: Mapping[str, Any] | None, records: Sequence[TrialRecord]
    ) -> dict[str, Any]:
        """What `RESULT` holds, but for the times.

        Args:
            trial: Whose parameters are drawn and whose constraints are set.
            queued: What the queue says of it: source, choices, parent, anchor.
            records: Finished trials: a plan among them is not measured again.
        """
        choices = self._draw(trial, queued, records)
        plan = self.space.plan(choices)
        costs = self.space.measures(choices)
        result: dict[str, Any] = {
            **{"source": "sampler", **(queued or {})},
            "choices": list(choices),
            "digest": plan.digest,
            "costs": costs,
            "state": "complete",
            "feasible": True,
            "evaluated": True,
            "reused": False,
            "judged": 0,
        }
        for resource, limit in self.limits.items():
            excess = self.space.bits(resource, choices) - limit
            trial.set_constraint(resource, excess / max(1, self.space.values[resource]))
            result["feasible"] &= excess <= 0
        if not result["feasible"]:
            result["evaluated"] = False
            result["values"] = self._stand_in(choices, costs, records)
            return result
        known = self._known(choices, result["source"], records)
        if known is None:
            return result | self._measure(trial, plan, result, records)
        self._report(trial, known.windows)
        return result | {
            "reused": True,
            "state": known.state,
            "values": list(known.values),
            "first_rung": list(known.first_rung),
            "windows": None if known.windows is None else known.windows.tolist(),
        }

    def _known(
        self, choices: Choices, source: str, records: Sequence[TrialRecord]
    ) -> TrialRecord | None:
        """A finished trial of the same plan; for a baseline one on all windows."""
        for record in records:
            if record.choices != choices:
                continue
            if record.is_candidate if source in BASELINES else record.is_comparable:
                return record
        return None

    def _draw(
        self, trial: Trial, queued: Mapping[str, Any] | None, records: Sequence[TrialRecord]
    ) -> Choices:
        """The plan that the trial's parameters (or the queue) name; the parameters are drawn."""
        if self.knobs:
            params = {k.name: trial.suggest_float(k.name, k.low, k.high) for k in self.knobs}
            if queued is None:
                is_tried = partial(_is_tried, records)
                return decode(self.space, params, self.ladders, self.limits, is_tried)
            return tuple(queued["choices"])
        return tuple(
            trial.suggest_int(f"choice.{group.name}", 0, len(group.candidates) - 1)
            for group in self.space.groups
        )

    def _measure(
        self,
        trial: Trial,
        plan: Plan,
        result: Mapping[str, Any],
        records: Sequence[TrialRecord],
    ) -> dict[str, Any]:
        """State, values and windows of a plan, judged rung by rung."""
        with self.interrupts.allowed():
            functions = {name: float(function(plan)) for name, function in self.functions.items()}
        quality = quality_objective(self.objectives)
        parts: list[Mapping[str, FloatArray]] = []
        found: dict[str, Any] = {"first_rung": []}
        for first, last in self.rungs:
            with self.interrupts.allowed():
                parts.append(self.evaluate(plan, first, last))
            seen = _joined(parts)
            found["values"] = list(
                objective_values(self.objectives, result["costs"], seen, functions)
            )
            found["judged"] = last
            if quality is not None and quality.source == "windows":
                found["windows"] = seen[quality.measured].tolist()
            if first == 0 and last < self.evaluate.num_windows:
                found["first_rung"] = found["values"]
            self._report(trial, seen.get(self.objectives[0].measured), since=first)
            found["state"] = self._state(trial, {**result, **found}, records)
            if found["state"] != "complete":
                break
        return found

    def _state(
        self, trial: Trial, found: Mapping[str, Any], records: Sequence[TrialRecord]
    ) -> State:
        """Whether a trial that has come this far is stopped, and by what."""
        if found["judged"] == self.evaluate.num_windows or found["source"] in BASELINES:
            return "complete"
        if self.pruner != "none":
            may_prune = found["source"] == "sampler" and trial.should_prune()
            return "pruned" if may_prune else "complete"
        quality = quality_objective(self.objectives)
        if quality is None or "windows" not in found:
            return "complete"
        choices = tuple(found["choices"])
        seen = Seen(
            choices=choices,
            windows=np.array(found["windows"], dtype=np.float64),
            first_values=found["first_rung"],
        )
        limits = next(
            (anchor.limits for anchor in self.anchors if anchor.name == found.get("anchor")),
            bracket(self.space, choices, self.ladders, self.compared),
        )
        is_out = is_hopeless(
            seen, self.space, records, self.objectives, quality=quality, limits=limits
        )
        return "dropped" if is_out else "complete"

    def _report(self, trial: Trial, windows: FloatArray | None, since: int = 0) -> None:
        """Tells the pruner of every rung that ends among these windows, from `since` on."""
        if self.pruner == "none" or windows is None:
            return
        for step, (first, last) in enumerate(self.rungs, start=1):
            if since < last <= len(windows):
                # Wilcoxon's test pairs the rungs themselves, the other pruners compare what
                # was seen so far.
                shown = windows[first if self.pruner == "wilcoxon" else 0 : last]
                trial.report(self.objectives[0].reduce(shown), step)

    def _stand_in(
        self, choices: Choices, costs: Mapping[str, float], records: Sequence[TrialRecord]
    ) -> list[float]:
        """Values for a plan over budget, which is not run: its costs, and the worst of the rest.

        Samplers rank such trials by how far they are over budget; Gaussian processes want a
        finite number all the same.
        """
        values = []
        for index, objective in enumerate(self.objectives):
            measured = [r.first_values[index] for r in records if r.is_comparable]
            if objective.source == "cost":
                values.append(costs[objective.name])
            elif measured:
                values.append(
                    max(measured) if objective.direction == "minimize" else min(measured)
                )
            else:
                values.append(self.space.predicted_damage(choices))
        return values


def _is_tried(records: Sequence[TrialRecord], choices: Choices) -> bool:
    # Two plans are told apart at their first difference: no set, which would read both to the end.
    return any(record.choices == choices and record.is_comparable for record in records)


def _joined(parts: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def read_record(trial: FrozenTrial) -> TrialRecord:
    """The record of a finished trial."""
    result = trial.user_attrs[RESULT]
    windows = result.get("windows")
    return TrialRecord(
        number=trial.number,
        state=result["state"],
        source=result["source"],
        choices=tuple(result["choices"]),
        digest=result["digest"],
        values=tuple(result["values"]),
        first_rung=tuple(result.get("first_rung", ())),
        costs=result["costs"],
        is_feasible=result["feasible"],
        is_evaluated=result["evaluated"],
        is_reused=result["reused"],
        seconds=result["seconds"],
        forward_seconds=result["forward_seconds"],
        windows=None if windows is None else np.array(windows, dtype=np.float64),
        num_judged=result["judged"],
        params=dict(trial.params),
        parent=result.get("parent"),
        anchor=result.get("anchor", ""),
    )
