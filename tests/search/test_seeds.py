import pytest

from mpq.search.guided import decode, knobs, optimum
from mpq.search.seeds import (
    bits_of,
    compared_resources,
    seeds,
    tightest,
    uniform_within,
    within,
)
from tests.search.synthetic import FORMATS, Problem, make_sites, make_space

RESOURCE = "weight_bits"


@pytest.fixture(scope="module")
def space():
    return make_space(Problem(make_sites(3)))


def make(space, *, limits=None, trials=60, compared=(RESOURCE,)):
    limits = limits or {}
    settings = knobs(space, [RESOURCE], limits)
    return seeds(space, settings=settings, compared=compared, limits=limits, trials=trials)


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
        assert decode(space, seed.params, [RESOURCE], {}) == seed.choices or not seed.anchor


def test_under_a_budget_the_first_seed_is_the_optimum_and_all_keep_it(space):
    limits = {RESOURCE: space.bits(RESOURCE, space.uniform["bfp4"]) + 1000}
    found = make(space, limits=limits)
    assert found[0].choices == optimum(space, space.damage, limits)
    assert all(within(space, seed.choices, limits) for seed in found)
    assert list(uniform_within(space, limits)) == list(FORMATS[:3])


def test_few_trials_keep_the_baselines_and_leave_half_to_the_sampler(space):
    assert [s.source for s in make(space, trials=3)] == ["uniform", "uniform", "allocation"]
    many, some = make(space, trials=100), make(space, trials=18)
    assert len(some) == 9
    assert some == many[:9]


def test_what_is_compared_covers_whatever_is_searched():
    weights = make_space(Problem(make_sites(1)))
    both = make_space(Problem(make_sites(1, activations=True)))
    assert compared_resources(weights, [], {"kv_bytes": 9}) == ["kv_bytes", "weight_bits"]
    assert compared_resources(both, ["weight_bits"], {}) == ["weight_bits", "activation_bits"]
    assert compared_resources(both, ["memory_density"], {}) == ["memory_density"]


def test_the_tighter_bound_counts():
    assert tightest({"a": 3, "b": 5}, {"b": 4, "c": 1}) == {"a": 3, "b": 4, "c": 1}
