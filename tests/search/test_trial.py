from types import SimpleNamespace

import pytest

from mpq.search.guided import knobs, ladder, uniform_stops
from mpq.search.objective import make_objectives
from mpq.search.trial import Judge, direct_params
from tests.search.synthetic import Problem, make_sites, make_space


def make_judge(problem, space, **more):
    ladders = {"weight_bits": ladder(uniform_stops(space, "weight_bits"))}
    options = {
        "objectives": make_objectives(["kl", "weight_bits"]),
        "knobs": knobs(space, ladders),
        "ladders": ladders,
        "limits": {},
        "compared": ["weight_bits"],
        "anchors": (),
        "rungs": [(0, problem.num_windows)],
        "functions": {},
        "pruner": "none",
    }
    return Judge(space=space, evaluate=problem, **(options | more))


class FakeTrial:
    """Draws the middle of every range, and keeps what it is told."""

    def __init__(self):
        self.constraints = {}

    def suggest_float(self, _, low, high):
        return (low + high) / 2

    def suggest_int(self, _, low, __):
        return low

    def set_constraint(self, name, value):
        self.constraints[name] = value


def test_a_queued_plan_is_taken_as_it_is_and_the_knobs_are_told_to_the_sampler():
    problem = Problem(make_sites(1))
    space = make_space(problem)
    queued = {"source": "uniform", "anchor": "bfp3", "choices": list(space.uniform["bfp3"])}
    result = make_judge(problem, space).judge(FakeTrial(), queued, [])
    assert result["state"] == "complete"
    assert result["judged"] == problem.num_windows
    assert tuple(result["choices"]) == space.uniform["bfp3"]
    assert result["anchor"] == "bfp3"
    assert result["values"][1] == result["costs"]["weight_bits"] == 3.5


def test_constraints_say_how_far_a_plan_is_over_budget():
    problem = Problem(make_sites(1))
    space = make_space(problem)
    limits = {"weight_bits": 3 * space.values["weight_bits"]}
    trial = FakeTrial()
    judge = make_judge(problem, space, limits=limits, knobs=())
    queued = {"source": "sampler", "choices": []}
    result = judge.judge(trial, queued, [])
    assert trial.constraints == {"weight_bits": -0.5}
    assert result["feasible"]
    tight = make_judge(problem, space, limits={"weight_bits": 1}, knobs=())
    result = tight.judge(trial, None, [])
    assert not result["evaluated"]
    assert result["values"][0] == pytest.approx(space.predicted_damage((0,) * len(space.groups)))
    assert problem.calls == 1


def test_direct_parameters_are_one_integer_a_group():
    space = make_space(Problem(make_sites(1)))
    names = [f"choice.{group.name}" for group in space.groups]
    assert direct_params(space, (0, 1, 2, 3)) == dict(zip(names, (0, 1, 2, 3), strict=True))
    assert SimpleNamespace(**direct_params(space, (0, 1, 2, 3)))
