"""The loop of a search: seeds, the sampler's trials, then exchanges, all trials of one study.

Everything that a search knows lies in the study's storage, so the same command resumes it, and
started several times it makes several workers.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from mpq.cost import COST_MEASURES, Cost
from mpq.errors import ConfigError
from mpq.plans.plan import Plan
from mpq.search.front import Source, TrialRecord
from mpq.search.guided import Knob, decode, knobs
from mpq.search.objective import (
    Evaluate,
    Objective,
    UserFunction,
    objective_values,
    quality_objective,
)
from mpq.search.refine import propose
from mpq.search.samplers import make_pruner, make_sampler, silence_optuna
from mpq.search.seeds import compared_resources, seeds
from mpq.search.space import Choices, FloatArray, Space, allowed_bits, resource_of
from mpq.search.workers import (
    QUEUED,
    SURPLUS,
    WORKER,
    give_back,
    open_study,
    reclaim,
    this_worker,
)

MAX_DIRECT_GROUPS = 128
RUNGS = 8
"""Parts that the windows are cut into when a pruner may stop a trial between them."""

_RESULT = "result"
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What a search is told, apart from what it searches.

    Attributes:
        mode: "guided" or "direct".
        sampler: One of `samplers.SAMPLERS`.
        trials: Trials of the study, seeds included.
        refine: Exchanges after those.
        seed: Of every random draw.
        budget: Cost measure -> bound.
        pruner: One of `samplers.PRUNERS`.
        timeout_seconds: After which no trial starts; None for no limit.
    """

    mode: Literal["guided", "direct"] = "guided"
    sampler: str = "tpe"
    trials: int = 60
    refine: int = 20
    seed: int = 0
    budget: Mapping[str, float] = field(default_factory=dict)
    pruner: str = "none"
    timeout_seconds: float | None = None


class _SurplusError(Exception):
    """Another worker took the last trial, or the same queued plan, a moment earlier."""


class Search:
    """A study that is being run.

    Attributes:
        space: What is searched.
        objectives: In the order of the study.
        settings: What the search was told.
        quality: The first objective that is no cost; None when all are.
        compared: Resources in which a plan must not cost more than the one it is compared with.
        limits: Resource -> the most bits that the budgets allow.
        knobs: What a guided trial sets; empty in the direct space.
        loop_seconds: Wall time of the trials that this process ran.
        forward_seconds: Its share spent in the model and the measures.
        num_run: How many trials this process ran.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        settings: SearchSettings,
        evaluate: Evaluate,
        *,
        storage: str,
        name: str = "mpq",
        functions: Mapping[str, UserFunction] | None = None,
    ) -> None:
        """Opens the study; runs nothing.

        Args:
            space: What is searched.
            objectives: In the order of the study.
            settings: See `SearchSettings`.
            evaluate: Measures a plan; called in this process only.
            storage: URL; see `workers.open_study`.
            name: Of the study in its storage.
            functions: The objectives that are functions of the user's.

        Raises:
            BudgetError: No plan of the space keeps a budget.
            ConfigError: The space, the sampler, the pruner and the objectives do not go together.
            RunError: The storage holds another search under this name.
        """
        silence_optuna()
        self.space = space
        self.objectives = tuple(objectives)
        self.settings = settings
        self.quality = quality_objective(objectives)
        self.limits = budget_limits(space, settings.budget)
        costs = [o.resource for o in objectives if o.source == "cost"]
        self._traded = list(dict.fromkeys(costs))
        self.compared = compared_resources(space, self._traded, self.limits)
        check_space(space, settings, self.objectives)
        is_guided = settings.mode == "guided"
        self.knobs: tuple[Knob, ...] = ()
        if is_guided:
            self.knobs = knobs(space, self._traded, self.limits)
        self.loop_seconds = 0.0
        self.forward_seconds = 0.0
        self.num_run = 0
        self._evaluate = evaluate
        self._functions = functions or {}
        self._started = 0.0
        self._current: int | None = None
        self._cache: dict[int, TrialRecord] = {}
        self._seeds = seeds(
            space,
            settings=self.knobs,
            compared=self.compared,
            limits=self.limits,
            trials=settings.trials,
        )
        start = self._params_of(self._seeds[0].choices, self._seeds[0].params)
        self.study = open_study(
            storage,
            name,
            self.objectives,
            digest=space.digest,
            sampler=make_sampler(
                settings.sampler, seed=settings.seed, trials=settings.trials, start=start
            ),
            pruner=make_pruner(settings.pruner, self.objectives, len(self._rungs())),
        )

    def records(self) -> list[TrialRecord]:
        """Every finished trial of the study, whoever ran it, by number."""
        for trial in self.study.get_trials(deepcopy=False, states=_FINISHED):
            if trial.number not in self._cache and _RESULT in trial.user_attrs:
                self._cache[trial.number] = _record(trial)
        return [self._cache[number] for number in sorted(self._cache)]

    def run(self, on_trial: Callable[[TrialRecord], None] | None = None) -> None:
        """Runs trials until the study has all of them, or the time is over.

        Whatever ends it early (Ctrl-C, an error of the evaluation), the trial at hand goes back
        into the queue before the exception leaves.

        Args:
            on_trial: Called after each trial of this process.
        """
        deadline = math.inf
        if self.settings.timeout_seconds is not None:
            deadline = time.monotonic() + self.settings.timeout_seconds
        reclaim(self.study, self._num_params)
        self._queue_seeds()
        while time.monotonic() < deadline and self._has_next():
            self._started = time.perf_counter()
            before = self._evaluate.forward_seconds
            self._current = None
            try:
                self.study.optimize(self._run_trial, n_trials=1, catch=(_SurplusError,))
            except BaseException:
                self._release()
                raise
            self._count(before, on_trial)
            reclaim(self.study, self._num_params)

    def _count(self, before: float, on_trial: Callable[[TrialRecord], None] | None) -> None:
        """Adds up the times of the trial that ended just now, and tells who wants to know."""
        self.loop_seconds += time.perf_counter() - self._started
        self.forward_seconds += self._evaluate.forward_seconds - before
        for record in self.records():
            if record.number == self._current:
                self.num_run += 1
                if on_trial is not None:
                    on_trial(record)

    @property
    def _num_params(self) -> int:
        return len(self.knobs) or len(self.space.groups)

    def _queue_seeds(self) -> None:
        trials = self.study.get_trials(deepcopy=False)
        queued = {tuple(t.user_attrs[QUEUED]["choices"]) for t in trials if QUEUED in t.user_attrs}
        for seed in self._seeds:
            if seed.choices not in queued:
                more = {"source": seed.source, "anchor": seed.anchor}
                self._queue(seed.choices, seed.params, more)

    def _queue(self, choices: Choices, params: Mapping[str, Any], more: dict[str, Any]) -> None:
        self.study.enqueue_trial(
            self._params_of(choices, params),
            user_attrs={
                QUEUED: {**more, "choices": list(choices)},
                # A plain attribute too, which dashboards show.
                "source": more["source"],
            },
        )

    def _params_of(self, choices: Choices, params: Mapping[str, Any]) -> dict[str, Any]:
        if self.knobs:
            return dict(params)
        names = [f"choice.{group.name}" for group in self.space.groups]
        return dict(zip(names, choices, strict=True))

    def _has_next(self) -> bool:
        """True when there is a trial to run; queues an exchange when it is time for one."""
        claims = self._claims()
        if any(trial.state == TrialState.WAITING for trial in claims):
            return True
        num_refined = sum(_source(trial) == "refine" for trial in claims)
        if len(claims) - num_refined < self.settings.trials:
            return True
        if num_refined >= self.settings.refine or self.quality is None:
            return False
        records = self.records()
        found = propose(
            self.space,
            records,
            self.objectives,
            quality=self.quality,
            compared=self.compared,
            limits=self.limits,
        )
        if found is None:
            return False
        lineage, choices = found
        more = {"source": "refine", "parent": lineage.best.number, "anchor": lineage.anchor}
        self._queue(choices, lineage.best.params, more)
        return True

    def _claims(self) -> list[FrozenTrial]:
        """Every trial that counts: finished, running or queued; not the failed ones."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state != TrialState.FAIL]

    def _refuse_surplus(self, trial: Trial) -> None:
        """Fails the trial when the study has enough of its sort, or the same plan is queued."""
        before = [other for other in self._claims() if other.number < trial.number]
        source = trial.user_attrs.get(QUEUED, {}).get("source", "sampler")
        same = [other for other in before if (_source(other) == "refine") == (source == "refine")]
        quota = self.settings.refine if source == "refine" else self.settings.trials
        queued = trial.user_attrs.get(QUEUED)
        twin = any(
            queued and other.user_attrs.get(QUEUED, {}).get("choices") == queued["choices"]
            for other in before
        )
        if len(same) >= quota or twin:
            trial.set_user_attr(SURPLUS, True)
            raise _SurplusError

    def _release(self) -> None:
        """Puts the trial that this process was running back into the queue."""
        if self._current is None:
            return
        trial = self.study.get_trials(deepcopy=False)[self._current]
        if (
            trial.state in (TrialState.RUNNING, TrialState.FAIL)
            and SURPLUS not in trial.user_attrs
        ):
            give_back(self.study, trial, self._num_params)

    def _run_trial(self, trial: Trial) -> tuple[float, ...]:
        self._current = trial.number
        trial.set_user_attr(WORKER, this_worker())
        self._refuse_surplus(trial)
        forward = self._evaluate.forward_seconds
        choices = self._draw(trial)
        plan = self.space.plan(choices)
        cost = self.space.cost(choices)
        result: dict[str, Any] = {
            **{"source": "sampler", **trial.user_attrs.get(QUEUED, {})},
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
        pruned = self._measure(trial, plan, choices, cost, result)
        result["seconds"] = time.perf_counter() - self._started
        result["forward_seconds"] = self._evaluate.forward_seconds - forward
        trial.set_user_attr(_RESULT, result)
        if pruned:
            raise optuna.TrialPruned
        return tuple(result["values"])

    def _draw(self, trial: Trial) -> Choices:
        """The trial's parameters, and the plan that they (or the queue) name."""
        queued = trial.user_attrs.get(QUEUED)
        if self.knobs:
            params = {k.name: trial.suggest_float(k.name, k.low, k.high) for k in self.knobs}
            if queued is None:
                return decode(self.space, params, self._traded, self.limits)
            return tuple(queued["choices"])
        return tuple(
            trial.suggest_int(f"choice.{group.name}", 0, len(group.candidates) - 1)
            for group in self.space.groups
        )

    def _measure(
        self, trial: Trial, plan: Plan, choices: Choices, cost: Cost, result: dict[str, Any]
    ) -> bool:
        """Adds values and windows to `result`; True when the pruner stopped the trial."""
        records = self.records()
        if not result["feasible"]:
            result["evaluated"] = False
            result["values"] = self._stand_in(choices, cost, records)
            return False
        known = next((r for r in records if r.choices == choices and r.is_candidate), None)
        if known is not None:
            result["reused"] = True
            result["values"] = list(known.values)
            if known.windows is not None:
                result["windows"] = known.windows.tolist()
            return False
        may_prune = self.settings.pruner != "none" and result["source"] == "sampler"
        windows, pruned = self._windows(trial, plan, may_prune)
        functions = {name: float(function(plan)) for name, function in self._functions.items()}
        result["values"] = list(objective_values(self.objectives, cost, windows, functions))
        if self.quality is not None and self.quality.source == "windows":
            result["windows"] = windows[self.quality.measured].tolist()
        return pruned

    def _windows(
        self, trial: Trial, plan: Plan, may_prune: bool
    ) -> tuple[dict[str, FloatArray], bool]:
        """Measure -> values of the windows seen, and whether the pruner stopped the trial."""
        if not may_prune:
            return dict(self._evaluate(plan)), False
        objective = self.objectives[0]
        parts: list[Mapping[str, FloatArray]] = []
        for step, (first, last) in enumerate(self._rungs()):
            parts.append(self._evaluate(plan, first, last))
            seen = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            # Wilcoxon's test pairs the rungs themselves, the other pruners compare what was
            # seen so far.
            shown = parts[-1] if self.settings.pruner == "wilcoxon" else seen
            trial.report(objective.reduce(shown[objective.measured]), step + 1)
            if last < self._evaluate.num_windows and trial.should_prune():
                return seen, True
        return seen, False

    def _rungs(self) -> list[tuple[int, int]]:
        """Ranges of windows, in whole batches, that a pruner sees one after the other."""
        batch = self._evaluate.batch_size
        num_batches = -(-self._evaluate.num_windows // batch)
        ends = np.unique(np.linspace(0, num_batches, min(RUNGS, num_batches) + 1).round())
        edges = [min(int(end) * batch, self._evaluate.num_windows) for end in ends]
        return list(itertools.pairwise(edges))

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


def budget_limits(space: Space, budget: Mapping[str, float]) -> dict[str, int]:
    """Resource -> the most bits that all budgets on it allow.

    Raises:
        BudgetError: The cheapest plan of the space breaks a budget.
    """
    limits: dict[str, int] = {}
    for measure, bound in budget.items():
        resource = resource_of(measure)
        allowed = allowed_bits(space, measure, bound)
        limits[resource] = min(allowed, limits.get(resource, allowed))
    return limits


def check_space(space: Space, settings: SearchSettings, objectives: Sequence[Objective]) -> None:
    """Refuses combinations that cannot search.

    Raises:
        ConfigError: The direct space has too many groups, or nothing holds a guided one back
            from the widest formats.
    """
    if settings.mode == "direct" and len(space.groups) > MAX_DIRECT_GROUPS:
        raise ConfigError(
            f'space.mode = "direct" takes at most {MAX_DIRECT_GROUPS} groups and this space has '
            f"{len(space.groups)}: with one variable a group, samplers hardly move in so many "
            "dimensions and Optuna's time for each trial grows with them; "
            'use space.mode = "guided"'
        )
    is_costed = settings.budget or any(objective.source == "cost" for objective in objectives)
    if settings.mode == "guided" and not is_costed:
        raise ConfigError(
            "a guided search needs a cost to trade: without a cost among search.objectives "
            f"({[o.name for o in objectives]}) or a [search.budget] every trial would be the plan "
            "of the widest formats; add one"
        )


def _source(trial: FrozenTrial) -> Source:
    return trial.user_attrs.get(QUEUED, {}).get("source", "sampler")  # type: ignore[no-any-return]


def _record(trial: FrozenTrial) -> TrialRecord:
    result = trial.user_attrs[_RESULT]
    windows = result.get("windows")
    return TrialRecord(
        number=trial.number,
        state="complete" if trial.state == TrialState.COMPLETE else "pruned",
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
