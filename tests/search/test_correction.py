import numpy as np
import pytest

from mpq.search.correction import corrected_damage
from mpq.search.guided import optimum
from mpq.search.seeds import bits_of
from tests.search.synthetic import Problem, make_sites, make_space


@pytest.fixture(scope="module")
def space():
    return make_space(Problem(make_sites(2)))


def measured_plans(space, truth, power, count=60):
    rng = np.random.default_rng(1)
    plans = {}
    while len(plans) < count:
        choices = tuple(int(c) for c in rng.integers(1, 4, len(space.groups)))
        own = space.damage[np.arange(len(choices)), list(choices)]
        plans[choices] = float((own**power * truth).sum())
    return plans


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_the_correction_learns_what_the_profile_misjudged(space, power):
    truth = np.exp(np.random.default_rng(2).normal(0, 0.5, len(space.groups)))
    measured = measured_plans(space, truth, power)
    near = sorted(measured, key=measured.get)[len(measured) // 2]
    damage = corrected_damage(space.damage, measured, near)
    exact = space.damage**power * truth[:, None]
    ratio = damage[:, 1:4] / exact[:, 1:4]
    assert np.std(np.log(ratio)) < 0.15
    assert np.std(np.log(space.damage[:, 1:4] / exact[:, 1:4])) > 0.4
    limits = bits_of(space, space.uniform["bfp3"], ["weight_bits"])
    rows = np.arange(len(space.groups))

    def suffers(choices):
        return exact[rows, list(choices)].sum()

    best = suffers(optimum(space, exact, limits))
    assert suffers(optimum(space, damage, limits)) <= 1.02 * best
    assert suffers(optimum(space, space.damage, limits)) > 1.02 * best


def test_few_plans_leave_the_profile_as_it_is(space):
    measured = {space.uniform["bfp3"]: 1.0, space.uniform["bfp4"]: 0.2}
    assert corrected_damage(space.damage, measured, space.uniform["bfp3"]) is space.damage


def test_a_flawless_profile_stays_in_proportion(space):
    measured = measured_plans(space, np.full(len(space.groups), 3.0), 1.0)
    near = next(iter(measured))
    ratio = corrected_damage(space.damage, measured, near) / space.damage
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-6)


def test_forbidden_choices_stay_forbidden_and_plans_with_them_do_not_count(space):
    damage = space.damage.copy()
    damage[0, 1] = np.inf
    measured = measured_plans(space, np.ones(len(space.groups)), 1.0)
    near = next(plan for plan in measured if plan[0] != 1)
    found = corrected_damage(damage, measured, near)
    assert np.isinf(found[0, 1])
    assert np.isfinite(np.delete(found.ravel(), 1)).all()
