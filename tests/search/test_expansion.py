import numpy as np
import pytest

from mpq.plans.move import UNTOUCHED, Move
from mpq.search.expansion import (
    LARGEST_FACTOR,
    REACH,
    SMALLEST_FACTOR,
    GroupMoves,
    damage_around,
    group_moves,
)
from tests.search.synthetic import Problem, make_sites, make_space

DAMAGE = np.array([[16.0, 4.0, 1.0, 0.25], [1.6, 0.4, 0.1, np.inf], [9.0, 8.0, 1.0, 0.0]])
PLAN = (1, 1, 2)
OWN = np.array([[4.0], [0.4], [1.0]])


def moves_of(whole, slope=0.0, apart=1.0):
    """The same slope and distance for every move."""
    return GroupMoves(
        slope=np.full(DAMAGE.shape, slope),
        apart=np.full(DAMAGE.shape, apart),
        whole=np.array(whole, dtype=float),
    )


def test_a_change_is_the_mean_of_taylors_estimate_and_the_scaled_profile():
    # Half of the slopes towards the whole tensors is three times what the groups cost alone.
    moves = moves_of((-6 * OWN).ravel(), slope=-5.0, apart=0.5)
    found = damage_around(DAMAGE, PLAN, moves, 1.0)
    taylor = -5.0 + 3 * 0.5 * (DAMAGE + OWN)
    expected = (taylor + 3 * (DAMAGE - OWN)) / 2
    np.testing.assert_allclose(found[0], [expected[0, 0], 0.0, *expected[0, 2:]])
    np.testing.assert_allclose(found[1], [expected[1, 0], 0.0, expected[1, 2], np.inf])
    # 9 times the damage is out of reach, 8 times is not where nothing lies between.
    np.testing.assert_allclose(found[2], [np.inf, expected[2, 1], 0.0, expected[2, 3]])


def test_what_a_move_loses_is_taken_with_caution_and_what_it_gains_is_not():
    moves = moves_of((-2 * OWN).ravel())
    plain, careful = (damage_around(DAMAGE, PLAN, moves, caution) for caution in (1.0, 4.0))
    loses = np.isfinite(plain) & (plain > 0)
    assert loses.sum() >= 3
    np.testing.assert_allclose(careful[loses], 4 * plain[loses])
    np.testing.assert_array_equal(careful[~loses], plain[~loses])


def test_a_quadratic_divergence_is_told_exactly():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 50))
    steps = (0.5, 0.25, 0.125)
    rounded = np.stack([np.round(weights / step) * step for step in steps], axis=1)
    errors = rounded - weights[:, None]
    damage = 0.5 * (errors**2).sum(-1)  # H is the identity, in and out of the plan
    plan = (1, 0, 2)
    now = errors[np.arange(3), list(plan)][:, None]
    change = errors - now
    slope = (now * change).sum(-1)
    apart = (change**2).sum(-1) / ((errors**2).sum(-1) + (now**2).sum(-1))
    moves = GroupMoves(slope=slope, apart=apart, whole=-(now**2).sum(-1).ravel())
    found = damage_around(damage, plan, moves, 1.0)
    expected = damage - damage[np.arange(3), list(plan)][:, None]
    reached = np.isfinite(found)
    assert reached.sum() >= 7
    np.testing.assert_allclose(found[reached], expected[reached], atol=1e-12)


def test_groups_that_nobody_saw_keep_the_scaled_profile():
    moves = moves_of([-8.0, -0.8, np.nan], slope=-1.0)
    moves.slope[2] = np.nan
    found = damage_around(DAMAGE, PLAN, moves, 1.0)
    np.testing.assert_allclose(found[2, 1:], [7.0, 0.0, -1.0])


@pytest.mark.parametrize(("whole", "factor"), [(-1e9, LARGEST_FACTOR), (1.0, SMALLEST_FACTOR)])
def test_the_factor_is_bounded(whole, factor):
    moves = moves_of([whole] * 3, slope=np.nan)
    assert damage_around(DAMAGE, PLAN, moves, 1.0)[0, 2] == pytest.approx(-3 * factor)


def test_a_group_without_damage_may_go_anywhere():
    moves = moves_of([-32.0, -3.2, 0.0], slope=np.nan)
    found = damage_around(DAMAGE, (0, 0, 3), moves, 2.0)
    np.testing.assert_allclose(found[2], [18.0, 16.0, 2.0, 0.0])
    assert REACH * DAMAGE[2, 3] == 0


def test_a_plan_without_damage_leaves_the_profile_as_it_is():
    damage = np.array([[1.0, 0.0], [2.0, 0.0]])
    moves = GroupMoves(
        slope=np.full((2, 2), np.nan), apart=np.ones((2, 2)), whole=np.array([-0.1, -0.2])
    )
    np.testing.assert_allclose(damage_around(damage, (1, 1), moves, 1.0), [[1, 0], [2, 0]])


def test_a_group_moves_as_its_sites_together():
    space = make_space(Problem(make_sites(1)))
    group = space.groups[0]
    texts = [*map(str, group.candidates), UNTOUCHED]
    by_site = {
        site: {text: Move(1.0 + n, 0.1 * (1 + n)) for text in texts}
        for n, site in enumerate(group.sites)
    }
    found = group_moves(space, by_site)
    count = len(group.sites)
    total = count * (count + 1) / 2
    assert (found.slope[0], found.whole[0]) == (
        pytest.approx([total] * found.slope.shape[1]),
        total,
    )
    assert found.apart[0] == pytest.approx([0.1 * total / count] * found.apart.shape[1])
    assert np.isnan(found.slope[1:]).all()
    assert np.isnan(found.whole[1:]).all()
