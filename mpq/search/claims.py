"""Which trials of a study count, and which one is one too many: what several workers agree on.

A trial that is over stays as it is. So those that no open trial precedes are looked at once, and
what a trial costs does not grow with the trials before it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, Trial, TrialState

from mpq.search.front import TrialRecord
from mpq.search.refine import propose
from mpq.search.trial import RESULT, read_record
from mpq.search.workers import QUEUED

if TYPE_CHECKING:
    from mpq.search.study import Search


def is_refinement(trial: FrozenTrial | Trial) -> bool:
    """True for an exchange; all others are the sampler's, seeds included."""
    return bool(trial.user_attrs.get(QUEUED, {}).get("source") == "refine")


def queued_plans(trials: Sequence[FrozenTrial]) -> set[tuple[int, ...]]:
    """The plans of those trials from the queue that did not fail."""
    return {
        _plan_of(trial.user_attrs[QUEUED])
        for trial in trials
        if QUEUED in trial.user_attrs and trial.state != TrialState.FAIL
    }


class Claims:
    """How many trials of a study count: finished, running or queued ones, not the failed.

    Attributes:
        refined: Exchanges.
        sampled: All others, seeds included.
        is_waiting: Whether one of them waits in the queue.
    """

    def __init__(self) -> None:
        """No trials."""
        self.refined = self.sampled = 0
        self.is_waiting = False
        self._open: list[FrozenTrial] = []
        self._num_over = self._refined_over = self._sampled_over = self._seeds_over = 0
        self._plans_over: set[tuple[int, ...]] = set()

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Counts anew.

        Args:
            trials: All of the study, by number, as they were read a moment ago.
        """
        while self._num_over < len(trials) and trials[self._num_over].state.is_finished():
            self._settle(trials[self._num_over])
            self._num_over += 1
        rest = trials[self._num_over :]
        self._open = [trial for trial in rest if trial.state != TrialState.FAIL]
        refined = sum(is_refinement(trial) for trial in self._open)
        self.refined = self._refined_over + refined
        self.sampled = self._sampled_over + len(self._open) - refined
        self.is_waiting = any(trial.state == TrialState.WAITING for trial in self._open)

    @property
    def taken(self) -> set[tuple[int, ...]]:
        """The plans from the queue that wait or are being measured."""
        return queued_plans(self._open)

    def _settle(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.FAIL:
            return
        self._refined_over += is_refinement(trial)
        self._sampled_over += not is_refinement(trial)
        if QUEUED in trial.user_attrs:
            self._seeds_over += not is_refinement(trial)
            self._plans_over.add(_plan_of(trial.user_attrs[QUEUED]))

    def is_surplus(self, number: int, queued: Mapping[str, Any] | None, *, quota: int) -> bool:
        """True when trials of lower numbers fill the quota, or have the same queued plan.

        A seed's place is taken by other seeds only: one that comes back late is measured, however
        many trials the sampler has had meanwhile.

        Args:
            number: Of the trial that is about to run; all of lower numbers were read.
            queued: What the queue says of it; None for a trial of the sampler's.
            quota: How many trials of its sort (exchanges, or all others) the study is to have.
        """
        before = [other for other in self._open if other.number < number]
        if queued is None:
            num_before = self._sampled_over + sum(not is_refinement(other) for other in before)
            return num_before >= quota
        is_refined = queued["source"] == "refine"
        others = [other for other in before if QUEUED in other.user_attrs]
        num_alike = sum(is_refinement(other) == is_refined for other in others)
        num_alike += self._refined_over if is_refined else self._seeds_over
        plan = _plan_of(queued)
        has_twin = plan in self._plans_over or plan in queued_plans(others)
        return num_alike >= quota or has_twin


def _plan_of(queued: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(queued["choices"])


class Records:
    """The records of a study's finished trials; each is read once."""

    def __init__(self) -> None:
        """None."""
        self._found: dict[int, TrialRecord] = {}
        self._num_over = 0

    def read(self, trials: Sequence[FrozenTrial]) -> list[TrialRecord]:
        """All of them, by number.

        Args:
            trials: All of the study, by number, as they were read a moment ago.
        """
        new = {
            trial.number: read_record(trial)
            for trial in trials[self._num_over :]
            if trial.number not in self._found
            and trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            and RESULT in trial.user_attrs
        }
        while self._num_over < len(trials) and trials[self._num_over].state.is_finished():
            self._num_over += 1
        if new:
            self._found = dict(sorted((self._found | new).items()))
        return list(self._found.values())


def missing(search: "Search") -> dict[str, int]:
    """What a search lacks before it can be asked -> how many; empty once all trials are over.

    Exchanges that nobody can propose are not lacking: the search is over without them.
    """
    trials = search.study.get_trials(deepcopy=False)
    claims = Claims()
    claims.read(trials)
    states = [trial.state for trial in trials]
    counts = {
        "running": states.count(TrialState.RUNNING),
        "waiting": states.count(TrialState.WAITING),
        "to be drawn": max(0, search.settings.trials - claims.sampled),
    }
    exchanges = search.settings.refine - claims.refined
    if search.quality is not None and exchanges > 0:
        is_over = not any(counts.values()) and not propose(
            search.space,
            search.records(),
            search.objectives,
            quality=search.quality,
            anchors=search.anchors,
            look=search.looks,
        )
        counts["to be proposed"] = 0 if is_over else exchanges
    return {name: count for name, count in counts.items() if count}
