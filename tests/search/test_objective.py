import math

import numpy as np
import pytest

from mpq.errors import ConfigError
from mpq.search.objective import make_objectives, objective_values, quality_objective
from tests.search.synthetic import Problem, make_sites, make_space


def test_measures_know_their_direction_and_unit():
    found = make_objectives(["kl", "accuracy", "memory_density", "weight_bits"])
    assert [o.direction for o in found] == ["minimize", "maximize", "maximize", "minimize"]
    assert [o.source for o in found] == ["windows", "windows", "cost", "cost"]
    assert quality_objective(found) is found[0]
    assert quality_objective(found[2:]) is None


def test_a_function_is_minimised_unless_its_name_says_otherwise():
    low, high = make_objectives(["pkg.mod:score", "maximize:pkg.mod:score"])
    assert (low.direction, high.direction) == ("minimize", "maximize")
    assert low.function == high.function == "pkg.mod:score"


@pytest.mark.parametrize("names", [[], ["kl", "kl"], ["kl", "speed"]])
def test_wrong_objectives(names):
    with pytest.raises(ConfigError, match="one or more different names out of kl, loss"):
        make_objectives(names)


def test_values_come_from_windows_costs_and_functions():
    space = make_space(Problem(make_sites(1)))
    costs = space.measures(space.uniform["bfp4"])
    objectives = make_objectives(["perplexity", "weight_bits", "m:f", "accuracy"])
    windows = {"loss": np.array([1.0, 3.0]), "accuracy": np.array([0.0, 1.0])}
    values = objective_values(objectives, costs, windows, {"m:f": 7.0})
    assert values == (math.exp(2.0), 4.5, 7.0, 0.5)


def test_nan_counts_as_worst():
    kl, accuracy, function = make_objectives(["kl", "accuracy", "maximize:m:f"])
    assert kl.reduce(np.array([1.0, np.nan])) == math.inf
    assert accuracy.reduce(np.array([np.nan])) == -math.inf
    space = make_space(Problem(make_sites(1)))
    costs = space.measures(space.uniform["bfp4"])
    assert objective_values([function], costs, {}, {"maximize:m:f": math.nan}) == (-math.inf,)
    assert make_objectives(["perplexity"])[0].reduce(np.array([1e4])) == math.inf


def test_a_measure_that_the_task_does_not_have_is_named():
    space = make_space(Problem(make_sites(1)))
    costs = space.measures(space.uniform["bfp4"])
    with pytest.raises(ConfigError, match=r"\['accuracy'\] are not measured .* \['kl'\]"):
        objective_values(make_objectives(["accuracy"]), costs, {"kl": np.zeros(1)}, {})


def test_better_follows_the_direction():
    kl, accuracy = make_objectives(["kl", "accuracy"])
    assert kl.is_better(1, 2)
    assert not kl.is_better(2, 2)
    assert accuracy.is_better(2, 1)
