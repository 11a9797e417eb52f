import numpy as np
import pytest

from mpq.search.expansion import (
    LARGEST_RATIO,
    PRIOR,
    REACH,
    SMALLEST_RATIO,
    damage_around,
    group_damage,
)
from tests.search.synthetic import Problem, make_sites, make_space

DAMAGE = np.array([[16.0, 4.0, 1.0, 0.25], [1.6, 0.4, 0.1, np.inf], [9.0, 8.0, 1.0, 0.0]])
PLAN = (1, 1, 2)
OWN = np.array([4.0, 0.4, 1.0])


def test_what_is_won_and_lost_is_scaled_by_what_groups_cost_within_the_plan():
    found = damage_around(DAMAGE, PLAN, 2 * OWN, 3.0)
    # Twice its own damage: wider formats win twice as much, narrower ones lose caution times that.
    np.testing.assert_allclose(found[0], [12 * 2 * 3, 0.0, -3 * 2, -3.75 * 2])
    np.testing.assert_allclose(found[1], [1.2 * 2 * 3, 0.0, -0.3 * 2, np.inf])
    # 9 times the damage is out of reach, 8 times is not where nothing lies between.
    np.testing.assert_allclose(found[2], [np.inf, 7 * 2 * 3, 0.0, -1.0 * 2])


def test_wins_shrink_with_what_a_group_costs_within_the_plan_and_losses_do_not():
    found = damage_around(DAMAGE, PLAN, OWN / 2, 2.0)
    np.testing.assert_allclose(found[0], [12 * 2, 0.0, -3 / 2, -3.75 / 2])


def test_a_group_with_little_damage_is_taken_for_one_like_the_others():
    damage = DAMAGE.copy()
    damage[1] /= 1e6
    own = np.array([4.0, 0.4e-6, 1.0])
    found = damage_around(damage, PLAN, 2 * own + [0, 1e-3, 0], 1.0)
    # Alone, a thousandth of a nat on nothing would be a ratio of thousands.
    assert found[1, 2] == pytest.approx(-0.3e-6 * 2, rel=1e-2)
    prior = PRIOR * own.mean()
    together = (2 * own.sum() + 1e-3) / own.sum()
    ratio = (8.0 + prior * together) / (4.0 + prior)
    assert found[0, 2] == pytest.approx(-3 * ratio)


def test_ratios_are_bounded_and_unknown_groups_keep_theirs():
    found = damage_around(DAMAGE, PLAN, np.array([1e3, -1e3, np.nan]), 1.0)
    assert found[0, 2] == pytest.approx(-3 * LARGEST_RATIO)
    assert found[1, 2] == pytest.approx(-0.3 * SMALLEST_RATIO)
    assert found[2, 3] == -1.0


def test_a_group_without_damage_may_go_anywhere():
    found = damage_around(DAMAGE, (0, 0, 3), np.array([16.0, 1.6, 0.0]), 2.0)
    np.testing.assert_allclose(found[2], [18.0, 16.0, 2.0, 0.0])
    assert REACH * DAMAGE[2, 3] == 0


def test_a_plan_without_damage_leaves_the_profile_as_it_is():
    damage = np.array([[1.0, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(
        damage_around(damage, (1, 1), np.array([0.1, 0.2]), 1.0), [[1.0, 0.0], [2.0, 0.0]]
    )


def test_a_group_costs_what_its_sites_cost():
    space = make_space(Problem(make_sites(1)))
    by_site = {site: 1.0 + index for index, site in enumerate(space.groups[0].sites)}
    found = group_damage(space, by_site)
    assert found[0] == sum(by_site.values())
    assert np.isnan(found[1:]).all()
