from types import SimpleNamespace

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mpq.errors import ConfigError
from mpq.search.objective import make_objectives
from mpq.search.samplers import (
    PRUNERS,
    SAMPLERS,
    make_pruner,
    make_sampler,
    param_ranges,
    trial_turn,
)
from mpq.search.settings import SearchSettings
from mpq.search.study import Search
from tests.search.synthetic import Problem, make_sites, make_space


def trials_in(*states):
    return [
        SimpleNamespace(number=number, state=state, user_attrs={})
        for number, state in enumerate(states)
    ]


def test_a_turn_passes_over_failed_trials():
    done, failed = TrialState.COMPLETE, TrialState.FAIL
    trials = trials_in(done, failed, done, failed, done)
    assert [trial_turn(trial, trials) for trial in trials] == [0, 1, 1, 2, 2]


def test_a_requeued_trial_has_the_turn_of_the_first():
    trials = trials_in(TrialState.FAIL, TrialState.WAITING)
    trials[1].user_attrs["turn"] = 0
    assert trial_turn(trials[1], trials) == 0


def test_trials_draw_from_their_own_generator():
    """The second trial is the same whether the process that draws it drew the first or not."""

    def draw(study, num_trials):
        for _ in range(num_trials):
            trial = study.ask()
            study.tell(trial, trial.suggest_float("x", 0, 1))

    values = []
    for cuts in ((4,), (1, 3), (2, 1, 1)):
        storage = optuna.storages.InMemoryStorage()
        optuna.create_study(storage=storage, study_name="s")
        for num_trials in cuts:
            sampler = make_sampler("random", seed=5, trials=10)
            draw(optuna.load_study(storage=storage, study_name="s", sampler=sampler), num_trials)
        study = optuna.load_study(storage=storage, study_name="s")
        values.append([trial.params["x"] for trial in study.trials])
    assert values[0] == values[1] == values[2]
    assert len(set(values[0])) == 4


@pytest.mark.parametrize("name", SAMPLERS)
def test_ranges_that_are_known_are_drawn_from_as_those_that_are_found(name):
    """What the sampler is told is what it would have found in the finished trials."""

    def draws(**options):
        sampler = make_sampler(name, seed=3, trials=40, **options)
        study = optuna.create_study(sampler=sampler)
        first = {"x": 0.5, "only": 0, "a": 1}
        study.add_trial(
            optuna.trial.create_trial(params=first, distributions=ranges, values=[0.25])
        )
        study.optimize(
            lambda t: (
                (t.suggest_float("x", 0, 1) - 0.3) ** 2
                + t.suggest_int("only", 0, 0)
                + t.suggest_int("a", 0, 3)
            ),
            14,
        )
        return [trial.params for trial in study.trials]

    ranges = {
        "x": FloatDistribution(0, 1),
        "only": IntDistribution(0, 0),
        "a": IntDistribution(0, 3),
    }
    assert draws(ranges=ranges) == draws()


def test_ranges_that_changed_are_found_in_the_trials():
    sampler = make_sampler("tpe", seed=0, trials=20, ranges={"x": FloatDistribution(0, 2)})
    study = optuna.create_study(sampler=sampler)
    study.add_trial(
        optuna.trial.create_trial(
            params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)}, values=[0.0]
        )
    )
    trial = study.trials[0]
    frozen = optuna.trial.create_trial(values=[0.0])
    frozen.number = 1
    found = sampler.infer_relative_search_space(study, frozen)
    assert found == {"x": trial.distributions["x"]}


@pytest.mark.parametrize("mode", ["guided", "direct"])
def test_the_ranges_are_those_that_trials_have(mode, tmp_path):
    space = make_space(Problem(make_sites(2)))
    search = Search(
        space,
        make_objectives(("kl", "weight_bits")),
        SearchSettings(trials=16, refine=0, mode=mode),
        Problem(make_sites(2)),
        storage=f"journal://{tmp_path}/study.log",
    )
    search.run()
    ranges = param_ranges(space, search._knobs)
    sampled = [t for t in search.study.trials if "queued" not in t.user_attrs]
    assert sampled
    assert all(trial.distributions == ranges for trial in sampled)


def test_queued_baselines_are_parents_in_the_first_generation():
    sampler = make_sampler("nsga2", seed=0, trials=32)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.enqueue_trial({"x": 0.5})
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 0.0), n_trials=2)
    keys = [key for key in study.trials[0].system_attrs if "generation" in key]
    assert [study.trials[0].system_attrs[key] for key in keys] == [0]


def test_unknown_samplers_and_pruners():
    with pytest.raises(ConfigError, match=r"search\.sampler is one of random, tpe"):
        make_sampler("annealing", seed=0, trials=1)
    with pytest.raises(ConfigError, match=r"search\.pruner is one of none, median"):
        make_pruner("hyperband", make_objectives(["kl"]), 8)


@pytest.mark.parametrize("names", [["kl", "weight_bits"], ["weight_bits"], ["m:f"]])
def test_pruning_needs_one_measured_objective(names):
    with pytest.raises(
        ConfigError, match="needs exactly one objective, measured window by window"
    ):
        make_pruner("median", make_objectives(names), 8)


def test_every_sampler_and_pruner_can_be_made():
    for name in SAMPLERS:
        make_sampler(name, seed=0, trials=10)
    for name in PRUNERS:
        make_pruner(name, make_objectives(["kl"]), 8)
