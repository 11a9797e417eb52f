import numpy as np
import optuna

from mpq.plans.move import UNTOUCHED, Move
from mpq.search.interrupts import Interrupts
from mpq.search.looks import Looks
from tests.search.synthetic import FORMATS, Problem, formats, make_sites, make_space
from tests.search.test_study import make_search


def seen(plan, sites=None):
    """The same numbers for every move of every site."""
    return {
        site: {str(fmt): Move(-0.02, 1.0) for fmt in formats(*FORMATS, UNTOUCHED)}
        for site in (plan.formats if sites is None else sites)
    }


def test_a_plan_is_looked_at_once_and_the_study_remembers():
    space = make_space(Problem(make_sites(1)))
    looked = []

    def in_plan(plan):
        looked.append(plan.digest)
        return seen(plan, space.groups[0].sites)

    study = optuna.create_study()
    plan = space.uniform["bfp3"]
    looks = Looks(study, space, in_plan, Interrupts())
    found = looks(plan)
    assert looks(plan) is found
    assert found.whole[0] == -0.02 * len(space.groups[0].sites)
    assert np.isnan(found.whole[1:]).all()
    again = Looks(study, space, in_plan, Interrupts())(plan)
    for name in ("slope", "apart", "whole"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert len(looked) == 1


def test_without_anybody_who_looks_nothing_is_known():
    space = make_space(Problem(make_sites(1)))
    looks = Looks(optuna.create_study(), space, None, Interrupts())
    assert looks(space.uniform["bfp3"]) is None


def test_plans_under_refinement_are_looked_at_once_and_by_nobody_after_them(tmp_path):
    looked = []

    def in_plan(plan):
        looked.append(plan.digest)
        return seen(plan)

    make_search(tmp_path, refine=3, in_plan=in_plan).run()
    again = make_search(tmp_path, refine=6, in_plan=in_plan)
    again.run()
    records = {record.number: record for record in again.records()}
    assert len(records) == 22
    parents = {record.parent for record in records.values() if record.parent is not None}
    assert {records[number].digest for number in parents} <= set(looked)
    assert len(set(looked)) == len(looked)  # the second run found what the first one had seen
