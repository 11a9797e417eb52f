import tempfile
from dataclasses import replace

import numpy as np
import pytest

from mpq.errors import BudgetError
from mpq.search.anchors import make_anchors, within
from mpq.search.asked import TRIES, Finished, ask
from mpq.search.expansion import CAUTIONS, GroupMoves, damage_around
from mpq.search.guided import optimum
from mpq.search.objective import make_objectives
from mpq.search.paired import SIGNIFICANCE, p_better
from mpq.search.settings import SearchSettings
from mpq.search.study import Search
from tests.search.synthetic import Problem, make_sites, make_space

OBJECTIVES = make_objectives(["kl", "weight_bits"])
COSTS = (3.2, 3.7, 4.3, 4.8, 5.3, 5.8)


class Exact(Problem):
    """A problem whose profile says all: the optimum cannot be beaten."""

    def __init__(self, sites):
        super().__init__(sites)
        self.misjudged[:] = 1.0
        self.coupling[:] = 0.0

    def __call__(self, plan, first=0, last=None):
        self.calls += 1
        return {"kl": self.damage(plan) * self.window_factors[first:last]}


def finished(problem, *, look=lambda _: None, tries=TRIES, first_windows=None, **more):
    """A search of few trials, and what is needed to ask it."""
    with tempfile.TemporaryDirectory() as folder:
        search = Search(
            make_space(problem),
            more.get("objectives", OBJECTIVES),
            SearchSettings(trials=12, refine=4, sampler="random"),
            problem,
            storage=f"journal://{folder}/log",
            functions=more.get("functions"),
        )
        search.run()
        records = search.records()
    return Finished(
        space=search.space,
        records=records,
        objectives=search.objectives,
        quality=search.objectives[0],
        anchors=search.anchors,
        evaluate=problem,
        look=look,
        first_windows=first_windows or problem.num_windows,
        functions=more.get("functions") or {},
        tries=tries,
    )


def anchors_at(search, costs=COSTS):
    return make_anchors(
        search.space,
        search.objectives,
        compared=["weight_bits"],
        limits={},
        targets=costs,
        which="targets",
    )


def seen_by(problem):
    """Looks at a plan as a gradient would: the slopes of what the problem measures."""
    space = make_space(problem)

    def look(choices):
        here = problem.damage(space.plan(choices))
        slope = np.empty_like(space.damage)
        for group, choice in np.ndindex(slope.shape):
            moved = (*choices[:group], choice, *choices[group + 1 :])
            slope[group, choice] = problem.damage(space.plan(moved)) - here
        return GroupMoves(
            slope=slope,
            apart=np.zeros_like(slope),
            whole=-2 * space.damage[np.arange(len(choices)), list(choices)],
        )

    return look


@pytest.fixture(scope="module")
def problem():
    return Problem(make_sites(2))


@pytest.fixture(scope="module")
def searched(problem):
    return finished(problem, look=seen_by(problem))


def test_an_answer_is_the_optimum_or_beats_it_in_the_paired_test(searched, problem):
    num_better = 0
    for anchor in anchors_at(searched):
        found = ask(searched, anchor)
        assert within(searched.space, found.best.choices, anchor.limits)
        optimal = problem(searched.space.plan(anchor.allocation))["kl"]
        if found.best.choices != anchor.allocation:
            num_better += 1
            assert p_better(found.best.windows, optimal, searched.quality) < SIGNIFICANCE
    assert num_better >= 2  # the profile is off by factors, so there is something to gain


def test_where_the_profile_says_all_the_optimum_is_the_answer():
    problem = Exact(make_sites(2))
    search = finished(problem, look=seen_by(problem))
    for anchor in anchors_at(search):
        assert ask(search, anchor).best.choices == anchor.allocation


def test_an_answer_is_no_worse_than_what_the_front_holds_there(searched):
    for anchor in anchors_at(searched):
        there = [
            record
            for record in searched.records
            if record.is_candidate and within(searched.space, record.choices, anchor.limits)
        ]
        assert ask(searched, anchor).best.values[0] <= min(record.values[0] for record in there)


def test_few_plans_are_measured_and_none_that_the_search_knows(searched, problem):
    (anchor,) = anchors_at(searched, [4.3])
    before = problem.calls
    found = ask(searched, anchor)
    assert problem.calls - before == len(found.measured) == TRIES + 1
    assert found.measured[0].choices == anchor.allocation
    known = {record.choices for record in searched.records}
    plans = [record.choices for record in found.measured]
    assert len({*plans}) == len(plans)
    assert not known & {*plans}
    last = max(record.number for record in searched.records)
    assert [record.number for record in found.measured] == [*range(last + 1, last + 2 + TRIES)]
    # The optimum at a uniform plan's cost is among the trials.
    (known_anchor,) = anchors_at(searched, [4.5])
    assert len(ask(searched, known_anchor).measured) == TRIES


def test_the_plans_next_to_the_cost_come_first(problem):
    looked = []

    def look(choices):
        looked.append(choices)
        return seen_by(problem)(choices)

    search = finished(problem, look=look)
    known = {record.choices for record in search.records}
    num_fresh = 0
    for anchor in anchors_at(search):
        looked.clear()
        found = ask(search, anchor)
        cheaper, dearer = looked[:2]
        assert within(search.space, cheaper, anchor.limits)
        assert not within(search.space, dearer, anchor.limits)
        damages = (
            damage_around(search.space.damage, plan, seen_by(problem)(plan), CAUTIONS[0])
            for plan in (cheaper, dearer)
        )
        moved = [optimum(search.space, damage, anchor.limits) for damage in damages]
        fresh = [plan for plan in moved if plan not in {*known, anchor.allocation}]
        first = [record.choices for record in found.measured[1:]]
        assert first[: len({*fresh})] == [*dict.fromkeys(fresh)]
        num_fresh += len(fresh)
    assert num_fresh > 0


def test_nobody_need_look(problem):
    search = finished(problem)
    (anchor,) = anchors_at(search, [4.3])
    assert len(ask(search, anchor).measured) == TRIES + 1


def test_without_tries_the_optimum_is_measured_and_stands(problem):
    search = finished(problem, tries=0)
    (anchor,) = anchors_at(search, [4.3])
    found = ask(search, anchor)
    assert [record.choices for record in found.measured] == [anchor.allocation]
    assert found.best is found.measured[0]
    assert anchor.allocation == optimum(search.space, search.space.damage, anchor.limits)


def test_records_hold_what_trials_hold(problem):
    objectives = make_objectives(["kl", "weight_bits", "some:count"])
    functions = {"some:count": lambda plan: float(len(plan.formats))}
    search = finished(problem, first_windows=8, objectives=objectives, functions=functions)
    (anchor,) = anchors_at(search, [4.3])
    for record in ask(search, anchor).measured:
        windows = problem(search.space.plan(record.choices))["kl"]
        bits = search.space.mean_bits("weight_bits", record.choices)
        assert record.values == (windows.mean(), bits, len(problem.sites))
        assert record.first_values == (windows[:8].mean(), bits, len(problem.sites))
        assert record.costs["weight_bits"] == bits
        np.testing.assert_array_equal(record.windows, windows)


class Broken(Problem):
    """A problem in which every plan's measure is infinite."""

    def __call__(self, plan, first=0, last=None):
        self.calls += bool(plan.formats)
        return {"kl": np.full(self.num_windows, np.inf)[first:last]}


def test_a_cost_at_which_the_model_breaks_is_refused():
    search = finished(Exact(make_sites(2)))
    anchor = anchors_at(search, (3.21,))[0]
    broken = replace(search, records=[], evaluate=Broken(make_sites(2)))
    with pytest.raises(BudgetError, match=r"at 3\.21 bits the model breaks: kl of the additive"):
        ask(broken, anchor)
