"""Optuna's samplers and pruners, seeded trial by trial, and its voice turned down."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from mpq.errors import ConfigError
from mpq.search.guided import Knob
from mpq.search.objective import Objective
from mpq.search.space import Space
from mpq.search.trial import direct_params

SAMPLERS = ("random", "tpe", "nsga2", "nsga3", "qmc", "gp", "cmaes")
PRUNERS = ("none", "median", "halving", "wilcoxon")

TURN = "turn"
"""User attribute of a requeued trial: the turn of the trial that it repeats."""


def silence_optuna() -> None:
    """Turns off Optuna's messages and the warnings that say what mpq has chosen on purpose."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # Guided plans keep every budget, so CMA-ES needs no constraints; direct ones are refused.
    warnings.filterwarnings("ignore", message="Constraints have been set, but CmaEsSampler")


class SeededSampler(BaseSampler):
    """One of Optuna's samplers, made anew for every trial from (seed, turn).

    Optuna's samplers keep their knowledge in the storage and only their random state in
    themselves. With the state renewed from the trial's turn, a resumed study draws what the
    uninterrupted one would have drawn. A turn is the trial's number without the failed trials
    before it, so that a killed trial shifts nothing.

    Attributes:
        trials: All trials of the study when the sampler was renewed last.
    """

    def __init__(
        self,
        make: Callable[[int], BaseSampler],
        seed: int,
        ranges: Mapping[str, BaseDistribution] | None = None,
    ) -> None:
        self.trials: list[FrozenTrial] = []
        self._make = make
        self._seed = seed
        self._ranges = dict(sorted((ranges or {}).items()))
        self._inner = make(seed)
        self._number: int | None = None

    def renew(
        self, study: Study, trial: FrozenTrial | Trial, known: Sequence[FrozenTrial] = ()
    ) -> None:
        """Makes the sampler of this trial, unless that is done.

        Args:
            study: Of the trial.
            trial: The one that is about to run.
            known: The study's trials as they were read a moment ago. When they include all that
                came before this trial they need not be read again.
        """
        if self._number == trial.number:
            return
        self._number = trial.number
        is_enough = trial.number <= len(known)
        self.trials = list(known) if is_enough else study.get_trials(deepcopy=False)
        turn = trial_turn(trial, self.trials)
        state = np.random.SeedSequence([self._seed, turn]).generate_state(1)
        self._inner = self._make(int(state[0]))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Does nothing: its worker claims a new trial before anything is read for it."""

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The ranges that every trial has, or the inner sampler's answer where they changed.

        That answer is what all finished trials share; a sampler made anew has to go through all
        of them for it.
        """
        self.renew(study, trial)
        first = next((t.distributions for t in self.trials if t.distributions), self._ranges)
        if self._ranges and first == self._ranges:
            return {name: one for name, one in self._ranges.items() if not one.single()}
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The inner sampler's answer."""
        self.renew(study, trial)
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The inner sampler's answer."""
        self.renew(study, trial)
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Passed on to the inner sampler."""
        genetic = (optuna.samplers.NSGAIISampler, optuna.samplers.NSGAIIISampler)
        if isinstance(self._inner, genetic) and state == TrialState.COMPLETE:
            # Queued trials are never sampled, so nobody else puts them into a generation; the
            # baselines are to be among the first parents.
            self._inner.get_trial_generation(study, trial)
        self._inner.after_trial(study, trial, state, values)


def trial_turn(trial: FrozenTrial | Trial, trials: Sequence[FrozenTrial]) -> int:
    """A trial's place among those of `trials` that count; a requeued one has its first one's."""
    if TURN in trial.user_attrs:
        return int(trial.user_attrs[TURN])
    failed = [other.number for other in trials if other.state == TrialState.FAIL]
    return int(trial.number) - sum(number < trial.number for number in failed)


def param_ranges(space: Space, knobs: Sequence[Knob]) -> dict[str, BaseDistribution]:
    """Parameter -> its range: the knobs, or one integer a group where there are none."""
    if knobs:
        return {knob.name: FloatDistribution(knob.low, knob.high) for knob in knobs}
    names = direct_params(space, space.num_choices.tolist())
    return {name: IntDistribution(0, count - 1) for name, count in names.items()}


def make_sampler(
    name: str,
    *,
    seed: int,
    trials: int,
    ranges: Mapping[str, BaseDistribution] | None = None,
) -> SeededSampler:
    """One of `SAMPLERS`, seeded trial by trial.

    Args:
        name: Which.
        seed: Of the study.
        trials: How many trials there will be; populations are a quarter of it, 8 to 50.
        ranges: Parameter -> its range, where every trial has the same ones.

    Raises:
        ConfigError: There is no sampler of this name.
    """
    population = min(50, max(8, trials // 4))
    samplers: dict[str, Callable[[int], BaseSampler]] = {
        "random": lambda state: optuna.samplers.RandomSampler(seed=state),
        "tpe": lambda state: optuna.samplers.TPESampler(seed=state, multivariate=True),
        "nsga2": lambda state: optuna.samplers.NSGAIISampler(
            seed=state, population_size=population
        ),
        "nsga3": lambda state: optuna.samplers.NSGAIIISampler(
            seed=state, population_size=population
        ),
        # The points of one sequence need one seed; which point is next lies in the storage.
        "qmc": lambda state: optuna.samplers.QMCSampler(
            seed=seed,
            scramble=True,
            independent_sampler=optuna.samplers.RandomSampler(seed=state),
        ),
        "gp": lambda state: optuna.samplers.GPSampler(seed=state, deterministic_objective=True),
        "cmaes": lambda state: optuna.samplers.CmaEsSampler(seed=state),
    }
    if name not in samplers:
        raise ConfigError(f"search.sampler is one of {', '.join(SAMPLERS)}; got {name!r}")
    # The order of a Sobol sequence's dimensions is that of the first trial, and quickly found.
    return SeededSampler(samplers[name], seed, None if name == "qmc" else ranges)


def make_pruner(
    name: str, objectives: Sequence[Objective], num_rungs: int
) -> optuna.pruners.BasePruner:
    """One of `PRUNERS`.

    Raises:
        ConfigError: There is no pruner of this name, or the study cannot be pruned: Optuna prunes
            with one objective only, and there must be values window by window.
    """
    if name not in PRUNERS:
        raise ConfigError(f"search.pruner is one of {', '.join(PRUNERS)}; got {name!r}")
    if name == "none":
        return optuna.pruners.NopPruner()
    if len(objectives) > 1 or objectives[0].source != "windows":
        raise ConfigError(
            f"search.pruner = {name!r} needs exactly one objective, measured window by window "
            f"(kl, loss, perplexity, accuracy); got {[o.name for o in objectives]}; "
            'use search.pruner = "none"'
        )
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=8, n_warmup_steps=1)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return optuna.pruners.WilcoxonPruner(p_threshold=0.05, n_startup_steps=min(4, num_rungs))
