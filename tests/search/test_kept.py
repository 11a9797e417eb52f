import math

import numpy as np

from mpq.search.kept import Kept
from tests.search.synthetic import Problem, make_sites, make_space


class Diverging(Problem):
    """A problem whose plans are not always numbers."""

    def __call__(self, plan, first=0, last=None):
        found = super().__call__(plan, first, last)
        found["kl"][:2] = math.inf, math.nan
        return found


def keep(problem, folder, part="search", **settings):
    return Kept(problem, folder / "asked.json", part=part, settings={"data": "a"} | settings)


def plans_of(problem):
    space = make_space(problem)
    return [space.plan(choices) for choices in space.uniform.values()]


def test_plans_are_measured_once_and_kept(tmp_path):
    problem = Problem(make_sites(1))
    plans = plans_of(problem)
    first = [keep(problem, tmp_path)(plan) for plan in plans]
    assert problem.calls == len(plans)
    again = keep(problem, tmp_path)
    for plan, found in zip(plans, first, strict=True):
        for name, values in again(plan, 4, 9).items():
            np.testing.assert_array_equal(values, found[name][4:9])
    assert problem.calls == len(plans)
    np.testing.assert_array_equal(first[1]["loss"], problem(plans[1])["loss"])
    assert (again.num_windows, again.batch_size) == (32, 4)
    assert again.forward_seconds == problem.forward_seconds


def test_what_was_measured_under_other_settings_is_measured_anew(tmp_path):
    problem = Problem(make_sites(1))
    plan = plans_of(problem)[0]
    keep(problem, tmp_path)(plan)
    keep(problem, tmp_path, data="b")(plan)
    assert problem.calls == 2
    longer = Problem(make_sites(1), num_windows=40)
    assert len(keep(longer, tmp_path, data="b")(plan)["kl"]) == 40
    # Each part has its own settings.
    keep(problem, tmp_path, "heldout")(plan)
    keep(longer, tmp_path, data="b")(plan)
    assert (problem.calls, longer.calls) == (3, 1)


def test_two_that_keep_lose_nothing_of_each_other(tmp_path):
    problem = Problem(make_sites(1))
    one, other = keep(problem, tmp_path), keep(problem, tmp_path)
    plans = plans_of(problem)
    one(plans[0])
    other(plans[1])
    again = keep(problem, tmp_path)
    again(plans[0])
    again(plans[1])
    assert problem.calls == 2


def test_what_is_no_number_is_kept_too(tmp_path):
    problem = Diverging(make_sites(1))
    plan = plans_of(problem)[0]
    before = keep(problem, tmp_path)(plan)["kl"]
    np.testing.assert_array_equal(keep(problem, tmp_path)(plan)["kl"], before)
    assert math.isinf(before[0])
    assert problem.calls == 1


def test_functions_are_called_once(tmp_path):
    problem = Problem(make_sites(1))
    called = []

    def count(plan):
        called.append(plan.digest)
        return math.inf if len(called) == 1 else 3.0

    plans = plans_of(problem)[:2]
    for _ in range(2):
        kept = keep(problem, tmp_path).function("mine:count", count)
        assert [kept(plan) for plan in plans] == [math.inf, 3.0]
    assert called == [plan.digest for plan in plans]
