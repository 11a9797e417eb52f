import pytest

from mpq.search.anchors import bits_of, make_anchors, within
from mpq.search.guided import decode, knobs, ladder, optimum, uniform_stops
from mpq.search.objective import make_objectives
from mpq.search.seeds import seeds
from tests.search.synthetic import FORMATS, Problem, make_sites, make_space

RESOURCE = "weight_bits"


@pytest.fixture(scope="module")
def space():
    return make_space(Problem(make_sites(3)))


def ladders(space):
    return {RESOURCE: ladder(uniform_stops(space, RESOURCE))}


def make(space, *, limits=None, trials=60, **more):
    common = {"compared": [RESOURCE], "limits": limits or {}}
    anchors = make_anchors(space, make_objectives(["kl", RESOURCE]), **common, **more)
    settings = knobs(space, ladders(space))
    return seeds(space, settings=settings, anchors=anchors, trials=trials, **common)


def test_every_uniform_plan_and_the_optimum_at_its_cost_come_first(space):
    found = make(space)
    sources = [seed.source for seed in found]
    assert [seed.anchor for seed in found if seed.source == "uniform"] == list(FORMATS)
    known = {seed.choices for seed in found}
    for choices in space.uniform.values():
        assert choices in known
        assert optimum(space, space.damage, bits_of(space, choices, [RESOURCE])) in known
    assert len(known) == len(found)
    assert sources[0] == "uniform"


def test_seeds_carry_knobs_that_decode_to_them(space):
    for seed in make(space):
        is_aimed_at = space.bits(RESOURCE, seed.choices) > space.least_bits(RESOURCE)
        if seed.anchor and is_aimed_at:
            assert decode(space, seed.params, ladders(space), {}) == seed.choices


def test_under_a_budget_the_first_seed_is_the_optimum_and_all_keep_it(space):
    limits = {RESOURCE: space.bits(RESOURCE, space.uniform["bfp4"]) + 1000}
    found = make(space, limits=limits)
    assert found[0].choices == optimum(space, space.damage, limits)
    assert all(within(space, seed.choices, limits) for seed in found)
    assert [s.anchor for s in found if s.source == "uniform"] == list(FORMATS[:3])


def test_targets_alone_spend_nothing_elsewhere(space):
    found = make(space, targets=[3.7, 5.0], which="targets")
    assert [(s.source, s.anchor) for s in found] == [
        ("uniform", "bfp3"),
        ("allocation", "3.7 bits"),
        ("uniform", "bfp4"),
        ("allocation", "5 bits"),
        ("allocation", ""),
    ]
    widest = space.mean_bits(RESOURCE, found[-1].choices)
    assert 3.7 < widest <= (3.7 + 5.0) / 2


def test_few_trials_keep_the_baselines_and_leave_half_to_the_sampler(space):
    assert [s.source for s in make(space, trials=3)] == ["uniform", "uniform", "allocation"]
    many, some = make(space, trials=100), make(space, trials=18)
    assert len(some) == 9
    assert some == many[:9]
