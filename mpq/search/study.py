"""The loop of a search: seeds, the sampler's trials, then exchanges, all trials of one study.

Everything that a search knows lies in the study's storage, so the same command resumes it, and
started several times it makes several workers.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from mpq.search.anchors import compared_resources
from mpq.search.claims import Claims, Records, is_refinement, queued_plans
from mpq.search.expansion import InPlan
from mpq.search.front import TrialRecord
from mpq.search.guided import knobs
from mpq.search.interrupts import Interrupts
from mpq.search.looks import Looks
from mpq.search.objective import Evaluate, Objective, UserFunction, quality_objective
from mpq.search.refine import propose
from mpq.search.rungs import trial_ranges
from mpq.search.samplers import make_pruner, make_sampler, param_ranges, silence_optuna
from mpq.search.seeds import seeds
from mpq.search.settings import (
    SearchSettings,
    anchors_of,
    budget_limits,
    check_space,
    ladders_of,
    traded_resources,
)
from mpq.search.space import Choices, Space
from mpq.search.trial import RESULT, Judge, direct_params
from mpq.search.workers import (
    QUEUED,
    SURPLUS,
    WORKER,
    give_back,
    may_come_back,
    open_study,
    reclaim,
    this_worker,
)

RECLAIM_SECONDS = 30.0
"""Trials of dead workers are looked for at the start, and then this often."""


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
        anchors: The costs at which plans are refined and compared, narrowest first.
        limits: Resource -> the most bits that the budgets allow.
        loop_seconds: Wall time of the trials that this process ran.
        forward_seconds: Its share spent in the model and the measures.
        num_run: How many trials this process ran.
        study: Optuna's.
        judge: Turns its trials into results.
        looks: What was seen of the plans that were refined.
    """

    def __init__(  # noqa: PLR0913 (what is searched, who measures it, and where it is kept)
        self,
        space: Space,
        objectives: Sequence[Objective],
        settings: SearchSettings,
        evaluate: Evaluate,
        *,
        storage: str,
        name: str = "mpq",
        functions: Mapping[str, UserFunction] | None = None,
        in_plan: InPlan | None = None,
    ) -> None:
        """Opens the study; runs nothing.

        Args:
            space: What is searched.
            objectives: In the order of the study.
            settings: See `SearchSettings`.
            evaluate: Measures a plan; called in this process only.
            storage: URL; see `storage.open_storage`.
            name: Of the study in its storage.
            functions: The objectives that are functions of the user's.
            in_plan: Looks at the plans that are refined; the seconds it takes are part of
                `evaluate`'s. None: exchanges are ranked by the profile and the trials alone.

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
        check_space(space, settings, self.objectives)
        traded = traded_resources(objectives)
        self.compared = compared_resources(space, traded, self.limits)
        self.anchors = anchors_of(space, settings, self.objectives)
        ladders = ladders_of(space, settings, self.anchors, traded)
        self.loop_seconds = self.forward_seconds = 0.0
        self.num_run = 0
        self._evaluate = evaluate
        self._interrupts = Interrupts()
        self._knobs = knobs(space, ladders) if settings.mode == "guided" else ()
        self.judge = Judge(
            space=space,
            objectives=self.objectives,
            knobs=self._knobs,
            ladders=ladders,
            limits=self.limits,
            compared=self.compared,
            anchors=self.anchors,
            evaluate=evaluate,
            functions=functions or {},
            pruner=settings.pruner,
            rungs=trial_ranges(settings.rungs, evaluate, is_pruned=settings.pruner != "none"),
            interrupts=self._interrupts,
        )
        self._seeds = seeds(
            space,
            settings=self._knobs,
            compared=self.compared,
            limits=self.limits,
            anchors=self.anchors,
            trials=settings.trials,
        )
        self._sampler = make_sampler(
            settings.sampler,
            seed=settings.seed,
            trials=settings.trials,
            ranges=param_ranges(space, self._knobs),
        )
        self._num_params = len(self._knobs) or len(space.groups)
        self.study = open_study(
            storage,
            name,
            self.objectives,
            digest=space.digest,
            num_params=self._num_params,
            sampler=self._sampler,
            pruner=make_pruner(settings.pruner, self.objectives, len(self.judge.rungs)),
        )
        self.looks = Looks(self.study, space, in_plan, self._interrupts)
        self._started = self._forward_started = 0.0
        self._reclaimed = -math.inf
        self._current: int | None = None
        self._claims = Claims()
        self._read = Records().read
        self._trials: list[FrozenTrial] = []

    def records(self) -> list[TrialRecord]:
        """Every finished trial of the study, whoever ran it, by number."""
        return self._read(self.study.get_trials(deepcopy=False))

    def run(self, on_trial: Callable[[Sequence[TrialRecord]], None] | None = None) -> None:
        """Runs trials until the study has all of them, or the time is over.

        Whatever ends it early (Ctrl-C, an error of the evaluation), the trial at hand goes back
        into the queue before the exception leaves. Ctrl-C takes effect while a plan is measured
        and between trials, never while the storage is written to.

        Args:
            on_trial: Called after each trial of this process with all that are finished, the one
                that ended just now last.
        """
        deadline = math.inf
        if self.settings.timeout_seconds is not None:
            deadline = time.monotonic() + self.settings.timeout_seconds
        with self._interrupts:
            self._reclaim()
            self._queue_seeds()
            self._trials = self.study.get_trials(deepcopy=False)
            while time.monotonic() < deadline:
                self._interrupts.deliver()
                self._started = time.perf_counter()
                self._forward_started = self._evaluate.forward_seconds
                if self._has_next(self._trials):
                    self._run_next(on_trial)
                elif may_come_back(self.study, self._trials, self._num_params):
                    self._trials = self.study.get_trials(deepcopy=False)
                else:
                    return

    def _run_next(self, on_trial: Callable[[Sequence[TrialRecord]], None] | None) -> None:
        """Runs one trial, and reads all trials of the study after it."""
        self._current = None
        try:
            self.study.optimize(self._run_trial, n_trials=1, catch=(_SurplusError,))
        except BaseException:
            self._release()
            raise
        self._reclaim()
        self._trials = self.study.get_trials(deepcopy=False)
        records = self._read(self._trials)
        mine = [record for record in records if record.number == self._current]
        self.num_run += len(mine)
        if mine and on_trial is not None:
            on_trial([record for record in records if record is not mine[0]] + mine)
        self.loop_seconds += time.perf_counter() - self._started
        self.forward_seconds += self._evaluate.forward_seconds - self._forward_started

    def _reclaim(self) -> None:
        if time.monotonic() - self._reclaimed > RECLAIM_SECONDS:
            optuna.storages.fail_stale_trials(self.study)
            reclaim(self.study, self._num_params)
            self._reclaimed = time.monotonic()

    def _queue_seeds(self) -> None:
        """Queues the seeds that have no trial, or failed ones only."""
        queued = queued_plans(self.study.get_trials(deepcopy=False))
        for seed in self._seeds:
            if seed.choices not in queued:
                more = {"source": seed.source, "anchor": seed.anchor}
                self._queue(seed.choices, seed.params, more)

    def _queue(self, choices: Choices, params: Mapping[str, Any], more: dict[str, Any]) -> None:
        self.study.enqueue_trial(
            dict(params) if self._knobs else direct_params(self.space, choices),
            # The source is a plain attribute too, which dashboards show.
            user_attrs={QUEUED: {**more, "choices": list(choices)}, "source": more["source"]},
        )

    def _has_next(self, trials: Sequence[FrozenTrial]) -> bool:
        """True when there is a trial to run; queues an exchange when it is time for one."""
        claims = self._claims
        claims.read(trials)
        if claims.is_waiting or claims.sampled < self.settings.trials:
            return True
        if claims.refined >= self.settings.refine or self.quality is None:
            return False
        found = propose(
            self.space,
            self._read(trials),
            self.objectives,
            quality=self.quality,
            anchors=self.anchors,
            look=self.looks,
            taken=claims.taken,
        )
        if found is None:
            return False
        lineage, choices = found
        more = {"source": "refine", "parent": lineage.best.number, "anchor": lineage.anchor.name}
        self._queue(choices, lineage.best.params, more)
        return True

    def _run_trial(self, trial: Trial) -> tuple[float, ...]:
        self._current = trial.number
        trial.set_user_attr(WORKER, this_worker())
        self._sampler.renew(self.study, trial, self._trials)
        trials = self._sampler.trials
        self._refuse_surplus(trial, trials)
        result = self.judge.judge(trial, trial.user_attrs.get(QUEUED), self._read(trials))
        result["seconds"] = time.perf_counter() - self._started
        result["forward_seconds"] = self._evaluate.forward_seconds - self._forward_started
        trial.set_user_attr(RESULT, result)
        if result["state"] == "pruned":
            raise optuna.TrialPruned
        # What all trials have seen: the values of a study compare.
        return tuple(result.get("first_rung") or result["values"])

    def _refuse_surplus(self, trial: Trial, trials: Sequence[FrozenTrial]) -> None:
        """Fails the trial when the study has enough of its sort, or the same plan is queued."""
        queued = trial.user_attrs.get(QUEUED)
        quota = self.settings.refine if is_refinement(trial) else self.settings.trials
        is_surplus = partial(self._claims.is_surplus, trial.number, queued, quota=quota)
        self._claims.read(trials)
        if not is_surplus():
            return
        # A trial that was open when they were read may have failed, and this be its successor.
        self._claims.read(self.study.get_trials(deepcopy=False))
        if is_surplus():
            trial.set_user_attr(SURPLUS, True)
            raise _SurplusError

    def _release(self) -> None:
        """Puts the trial that this process was running back into the queue."""
        if self._current is None:
            return
        trial = self.study.get_trials(deepcopy=False)[self._current]
        is_open = trial.state in (TrialState.RUNNING, TrialState.FAIL)
        if is_open and SURPLUS not in trial.user_attrs:
            give_back(self.study, trial, self._num_params)
