import itertools

import numpy as np
import pytest

from mpq.search.anchors import bits_of, within
from mpq.search.guided import (
    decode,
    knobs,
    ladder,
    neutral_params,
    optimum,
    reweighted,
    uniform_stops,
)
from tests.search.synthetic import FORMATS, Problem, make_sites, make_space

RESOURCE = "weight_bits"


@pytest.fixture(scope="module")
def space():
    return make_space(Problem(make_sites(3)))


def ladders(space, limit=None):
    return {RESOURCE: ladder(uniform_stops(space, RESOURCE), limit)}


def settings_of(space, limit=None):
    return knobs(space, ladders(space, limit))


def aimed_at(space):
    """The uniform plans but the cheapest, which is a seed and alone at its cost."""
    return list(space.uniform.values())[1:]


def test_neutral_knobs_decode_to_the_optimum_of_the_profile(space):
    for choices in aimed_at(space):
        bits = bits_of(space, choices, [RESOURCE])
        params = neutral_params(space, settings_of(space), bits)
        assert decode(space, params, ladders(space), {}) == optimum(space, space.damage, bits)


def test_nobody_aims_at_the_cheapest_plan_but_at_the_lowest_target(space):
    steps = ladder(uniform_stops(space, RESOURCE))
    (bits, *_) = knobs(space, {RESOURCE: steps})
    assert bits.low == steps[1] / space.values[RESOURCE]
    (bits, *_) = knobs(space, {RESOURCE: steps[1:]})
    assert bits.low == steps[1] / space.values[RESOURCE]
    assert bits.high == steps[-1] / space.values[RESOURCE]


def test_the_optimum_is_the_best_of_all_plans():
    space = make_space(Problem(make_sites(1)), formats=("bfp2", "bfp3", "bfp5"))
    limit = {RESOURCE: space.bits(RESOURCE, space.uniform["bfp3"])}
    inside = [
        choices
        for choices in itertools.product(range(3), repeat=len(space.groups))
        if within(space, choices, limit)
    ]
    best = min(inside, key=space.predicted_damage)
    found = optimum(space, space.damage, limit)
    assert space.predicted_damage(found) == pytest.approx(space.predicted_damage(best))


def test_full_shrink_decodes_to_the_uniform_plans(space):
    for choices in aimed_at(space):
        params = neutral_params(space, settings_of(space), bits_of(space, choices, [RESOURCE]))
        assert decode(space, params | {"shrink": 1.0}, ladders(space), {}) == choices


def test_every_decoded_plan_keeps_its_target_and_the_budget(space):
    limits = {RESOURCE: space.bits(RESOURCE, space.uniform["bfp4"])}
    settings = settings_of(space, limits[RESOURCE])
    rng = np.random.default_rng(0)
    for _ in range(50):
        params = {knob.name: float(rng.uniform(knob.low, knob.high)) for knob in settings}
        choices = decode(space, params, ladders(space, limits[RESOURCE]), limits)
        assert within(space, choices, limits)
        assert space.mean_bits(RESOURCE, choices) <= params["bits.weight"] + 1e-9


def test_knobs_of_plans_that_were_tried_give_new_plans_at_no_greater_cost(space):
    params = neutral_params(
        space, settings_of(space), bits_of(space, space.uniform["bfp4"], [RESOURCE])
    )
    tried = {decode(space, params, ladders(space), {})}
    (first,) = tried
    damages = []
    for _ in range(8):
        new = decode(space, params, ladders(space), {}, tried.__contains__)
        assert new not in tried
        assert new == decode(space, params, ladders(space), {}, set(tried).__contains__)
        assert within(space, new, bits_of(space, space.uniform["bfp4"], [RESOURCE]))
        damages.append(space.predicted_damage(new))
        tried.add(new)
    # They stay close to what the knobs ask for.
    assert space.predicted_damage(first) <= min(damages)
    assert np.median(damages) < 1.3 * space.predicted_damage(first)


def test_where_there_is_no_new_plan_a_tried_one_comes_back(space):
    cheapest = space.uniform["bfp2"]
    params = neutral_params(space, settings_of(space), {}) | {"bits.weight": 0.0}
    assert decode(space, params, ladders(space), {}, {cheapest}.__contains__) == cheapest


def test_a_multiplier_moves_bits_to_its_kind(space):
    middle = bits_of(space, space.uniform["bfp4"], [RESOURCE])
    neutral = neutral_params(space, settings_of(space), middle)
    name = "kind.down_proj.weight"
    chosen = {}
    for value in (-1.5, 1.5):
        choices = decode(space, neutral | {name: value}, ladders(space), {})
        chosen[value] = sum(
            choice
            for group, choice in zip(space.groups, choices, strict=True)
            if group.kind == "down_proj.weight"
        )
    assert chosen[-1.5] < chosen[1.5]


def test_tilt_and_power_reweigh_as_their_formula_says(space):
    params = {"shrink": 0.0, "power": 0.5, "tilt": 1.0, "kind.o_proj.weight": 0.3}
    damage = reweighted(space, params)
    for group, own, seen in zip(space.groups, space.damage, damage, strict=True):
        kind = 0.3 if group.kind == "o_proj.weight" else 0.0
        factor = np.exp(2 * group.depth - 1 + kind)
        np.testing.assert_allclose(seen, np.sqrt(own) * factor, rtol=1e-12)


def test_forbidden_choices_stay_forbidden(space):
    damage = space.damage.copy()
    damage[0, 2] = np.inf
    blocked = make_space(Problem(make_sites(3)))
    object.__setattr__(blocked, "damage", damage)
    params = {knob.name: knob.neutral for knob in settings_of(space)}
    for shrink in (0.0, 0.5, 1.0):
        assert np.isinf(reweighted(blocked, params | {"shrink": shrink})[0, 2])


def test_the_ladder_holds_the_uniform_costs_and_steps_between(space):
    costs = [space.bits(RESOURCE, choices) for choices in space.uniform.values()]
    assert uniform_stops(space, RESOURCE) == set(costs)
    steps = ladder(costs)
    assert set(costs) <= set(steps.tolist())
    assert len(steps) == 4 * (len(FORMATS) - 1) + 1
    assert (np.diff(steps) > 0).all()
    assert ladder(costs, costs[2] + 7)[-1] == costs[2] + 7
    assert ladder(costs, 10**12)[-1] == costs[-1]
    assert ladder([40, 8, 40]).tolist() == [8, 16, 24, 32, 40]


def test_without_a_cost_to_trade_there_is_no_aim(space):
    assert all(not knob.name.startswith("bits.") for knob in knobs(space, {}))


def test_a_ladder_of_one_step_needs_no_knob(space):
    only = {RESOURCE: ladder([space.bits(RESOURCE, space.uniform["bfp3"])])}
    settings = knobs(space, only)
    assert all(not knob.name.startswith("bits.") for knob in settings)
    params = {knob.name: knob.neutral for knob in settings} | {"shrink": 1.0}
    assert decode(space, params, only, {}) == space.uniform["bfp3"]


def test_no_bound_gives_every_group_its_least_damage(space):
    assert optimum(space, space.damage, {}) == space.uniform[FORMATS[-1]]
