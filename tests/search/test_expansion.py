import numpy as np
import pytest

from mpq.search.expansion import REACH, damage_around, group_damage
from tests.search.synthetic import Problem, make_sites, make_space

DAMAGE = np.array([[16.0, 4.0, 1.0, 0.25], [1.6, 0.4, 0.1, np.inf], [9.0, 8.0, 1.0, 0.0]])
PLAN = (1, 1, 2)


def test_what_is_won_and_lost_is_scaled_by_what_a_group_costs_within_the_plan():
    found = damage_around(DAMAGE, PLAN, np.array([8.0, 0.2, 1.0]), 2.0)
    # Twice its own damage: wider formats win twice as much, narrower ones lose caution times that.
    np.testing.assert_allclose(found[0], [12 * 2 * 2, 0.0, -3 * 2, -3.75 * 2])
    # Half of it: wins are halved, losses are not.
    np.testing.assert_allclose(found[1], [1.2 * 2, 0.0, -0.3 * 0.5, np.inf])
    # 9 times the damage is out of reach, 8 times is not where nothing lies between.
    np.testing.assert_allclose(found[2], [np.inf, 7 * 2, 0.0, -1.0])


def test_ratios_are_bounded_and_unknown_groups_keep_theirs():
    found = damage_around(DAMAGE, PLAN, np.array([1e3, -1.0, np.nan]), 1.0)
    assert found[0, 2] == pytest.approx(-30.0)
    assert found[1, 2] == pytest.approx(-0.09)
    assert found[2, 3] == -1.0


def test_a_group_without_damage_may_go_anywhere():
    found = damage_around(DAMAGE, (0, 0, 3), np.array([16.0, 1.6, 0.0]), 2.0)
    assert found[2].tolist() == [18.0, 16.0, 2.0, 0.0]
    assert REACH * DAMAGE[2, 3] == 0


def test_a_group_costs_what_its_sites_cost():
    space = make_space(Problem(make_sites(1)))
    by_site = {site: 1.0 + index for index, site in enumerate(space.groups[0].sites)}
    found = group_damage(space, by_site)
    assert found[0] == sum(by_site.values())
    assert np.isnan(found[1:]).all()
