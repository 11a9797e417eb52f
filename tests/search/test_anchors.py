import pytest

from mpq.errors import BudgetError
from mpq.search.anchors import (
    AT_BUDGET,
    bits_of,
    compared_resources,
    make_anchors,
    uniform_within,
    within,
)
from mpq.search.guided import optimum
from mpq.search.objective import make_objectives
from tests.search.synthetic import FORMATS, Problem, make_sites, make_space

RESOURCE = "weight_bits"
OBJECTIVES = make_objectives(["kl", RESOURCE])


@pytest.fixture(scope="module")
def space():
    return make_space(Problem(make_sites(2)))


def make(space, objectives=OBJECTIVES, *, compared=(RESOURCE,), limits=None, **more):
    return make_anchors(space, objectives, compared=compared, limits=limits or {}, **more)


def test_there_is_one_at_the_cost_of_every_uniform_plan(space):
    found = make(space)
    assert [one.name for one in found] == [one.uniform_name for one in found] == list(FORMATS)
    for one, choices in zip(found, space.uniform.values(), strict=True):
        assert one.uniform == choices
        assert one.limits == bits_of(space, choices, [RESOURCE])
        assert one.allocation == optimum(space, space.damage, one.limits)


def test_a_target_competes_with_the_widest_uniform_plan_that_costs_no_more(space):
    found = make(space, targets=[3.7, 5.0])
    assert [one.name for one in found] == [
        *FORMATS[:2], "3.7 bits", FORMATS[2], "5 bits", *FORMATS[3:]
    ]  # fmt: skip
    target = found[2]
    assert target.uniform_name == "bfp3"
    assert target.limits[RESOURCE] == int(3.7 * space.values[RESOURCE])
    assert within(space, target.allocation, target.limits)
    assert space.mean_bits(RESOURCE, target.allocation) > 3.6
    alone = make(space, targets=[3.7, 5.0], which="targets")
    assert [one.name for one in alone] == ["3.7 bits", "5 bits"]


def test_a_target_at_the_cost_of_a_uniform_plan_goes_by_its_name(space):
    assert [one.name for one in make(space, targets=[3.5])] == list(FORMATS)
    (alone,) = make(space, targets=[3.5], which="targets")
    assert (alone.name, alone.uniform_name) == ("3.5 bits", "bfp3")
    assert alone.limits == make(space)[1].limits


def test_below_all_uniform_plans_there_is_no_rival():
    problem = Problem(make_sites(1))
    wide = make_space(problem, formats=("bfp3", "bfp4"))
    limits = {RESOURCE: wide.bits(RESOURCE, wide.uniform["bfp3"]) - 1}
    assert uniform_within(wide, limits) == {}
    (one,) = make(wide, make_objectives(["kl"]), limits={RESOURCE: 4 * wide.values[RESOURCE]})
    assert (one.name, one.uniform_name) == (AT_BUDGET, "bfp3")


def test_a_target_bounds_the_other_resources_like_its_rival():
    space = make_space(Problem(make_sites(1, activations=True)))
    compared = [RESOURCE, "activation_bits"]
    objectives = make_objectives(["kl", *compared])
    (one,) = make(space, objectives, compared=compared, targets=[5.0], which="targets")
    rival = space.uniform["bfp4"]
    assert one.limits["activation_bits"] == space.bits("activation_bits", rival)
    assert one.limits[RESOURCE] == 5 * space.values[RESOURCE]


def test_targets_out_of_reach_are_refused_all_at_once(space):
    message = r"from 2\.5 \(the cheapest plan\) to 6\.5 \(the dearest\); out of reach: 2, 9$"
    with pytest.raises(BudgetError, match=message):
        make(space, targets=[2.0, 4.0, 9.0])
    limits = {RESOURCE: 4 * space.values[RESOURCE]}
    with pytest.raises(BudgetError, match=r"to 4 \(the dearest that keeps the budget\).*: 5$"):
        make(space, limits=limits, targets=[3.0, 5.0])
    assert len(make(space, targets=[2.5, 6.5])) == len(FORMATS)


def test_targets_that_agree_in_six_digits_have_an_anchor_each():
    space = make_space(Problem(make_sites(400)))  # one bit in all is less than 1e-6 a weight
    assert space.values[RESOURCE] > 2e6
    names = [one.name for one in make(space, targets=[3.7, 3.700001], which="targets")]
    assert names == ["3.7 bits", "3.700001 bits"]


@pytest.mark.parametrize("twins", [[3.7, 3.7000001], [3.7, 3.7]])
def test_targets_that_allow_the_same_bits_are_refused(space, twins):
    with pytest.raises(BudgetError, match=rf"the same bits of all \d+ weights: 3\.7, {twins[1]};"):
        make(space, targets=[3.2, *twins], which="targets")


def test_budgets_alone_make_one_anchor(space):
    limits = {RESOURCE: space.bits(RESOURCE, space.uniform["bfp4"]) + 1000}
    (one,) = make(space, make_objectives(["kl"]), limits=limits)
    assert (one.name, one.uniform_name, one.limits) == (AT_BUDGET, "bfp4", limits)
    assert [one.name for one in make(space, limits=limits)] == list(FORMATS[:3])


def test_what_is_compared_covers_whatever_is_searched():
    weights = make_space(Problem(make_sites(1)))
    both = make_space(Problem(make_sites(1, activations=True)))
    assert compared_resources(weights, [], {"kv_bytes": 9}) == ["kv_bytes", "weight_bits"]
    assert compared_resources(both, ["weight_bits"], {}) == ["weight_bits", "activation_bits"]
    assert compared_resources(both, ["memory_density"], {}) == ["memory_density"]
