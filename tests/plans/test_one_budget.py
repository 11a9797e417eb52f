"""The optimum under one budget, beside scipy's integer program."""

import numpy as np
import pytest

from mpq.plans import one_budget
from mpq.plans.allocate import allocate
from mpq.plans.knapsack import Problem, argmin, integer_program, spent
from mpq.plans.one_budget import best_within, price_of


def make_problem(seed, groups=40, choices=6, *, share=0.4, unit=1):
    rng = np.random.default_rng(seed)
    damage = np.exp(rng.normal(0, 1.5, (groups, 1))) * np.sort(rng.random((groups, choices)))
    costs = np.sort(rng.integers(1, 200, (1, groups, choices)))[..., ::-1] * unit
    least, most = costs.min(axis=2).sum(), costs.max(axis=2).sum()
    damage[rng.random(damage.shape) < 0.1] = np.inf
    damage[:, -1] = np.where(np.isfinite(damage).any(axis=1), damage[:, -1], 1.0)
    damage[:, -1] = np.where(np.isfinite(damage[:, -1]), damage[:, -1], 9.0)
    return Problem(damage, costs, np.array([int(least + share * (most - least))]))


def cheapest(problem):
    """An assignment within the budget, and a bad one."""
    return argmin(np.where(np.isfinite(problem.damage), problem.costs[0], np.inf))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_it_finds_what_an_integer_program_finds(seed, share):
    problem = make_problem(seed, share=share, unit=1 + 16 * (seed % 2))
    oracle = integer_program(problem)
    price = float(price_of(problem)[0])
    found = best_within(problem, price, cheapest(problem))
    assert problem.keeps(found)
    assert problem.loss(found) == pytest.approx(problem.loss(oracle), rel=1e-9)
    assert problem.loss(allocate(problem.damage, problem.costs, problem.budgets)) == (
        pytest.approx(problem.loss(oracle), rel=1e-9)
    )


@pytest.mark.parametrize("factor", [0.0, 0.3, 3.0])
def test_any_price_gives_the_same_answer(factor):
    problem = make_problem(3, groups=12)
    price = float(price_of(problem)[0])
    best = best_within(problem, price, cheapest(problem))
    other = best_within(problem, factor * price, cheapest(problem))
    assert problem.loss(other) == pytest.approx(problem.loss(best), rel=1e-12)


def test_an_optimum_that_is_known_comes_back():
    problem = make_problem(5)
    price = float(price_of(problem)[0])
    best = best_within(problem, price, cheapest(problem))
    np.testing.assert_array_equal(best_within(problem, price, best), best)


def test_groups_that_are_alike_are_no_burden():
    damage = np.tile(4.0 ** -np.arange(2, 9), (1000, 1))
    costs = np.tile(np.arange(2, 9) * 1024, (1, 1000, 1))
    budget = int(4.5 * 1024 * 1000)
    choices = allocate(damage, costs, np.array([budget]))
    assert sorted(set(choices.tolist())) == [2, 3]
    assert costs[0, np.arange(1000), choices].sum() == budget


def test_too_many_partial_answers_are_left_to_the_integer_program(monkeypatch):
    problem = make_problem(7)
    expected = problem.loss(integer_program(problem))
    monkeypatch.setattr(one_budget, "MAX_STATES", 1)
    assert best_within(problem, 0.0, cheapest(problem)) is None
    found = allocate(problem.damage, problem.costs, problem.budgets)
    assert problem.loss(found) == pytest.approx(expected, rel=1e-9)


def test_many_sizes_at_one_ratio_of_damage_to_cost_are_left_to_the_integer_program():
    """No bound tells such answers apart, and hardly any two cost the same."""
    sizes = np.random.default_rng(0).integers(1, 5000, (160, 1))
    damage, costs = sizes * np.array([1.0, 0.25]), (sizes * np.array([3, 4]))[None]
    problem = Problem(damage, costs, np.array([int(costs.min(axis=2).sum() * 7 // 6)]))
    assert best_within(problem, float(price_of(problem)[0]), cheapest(problem)) is None
    found = allocate(*(getattr(problem, name) for name in ("damage", "costs", "budgets")))
    assert problem.keeps(found)
    assert problem.loss(found) <= problem.loss(integer_program(problem)) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_at_the_price_groups_keep_the_budget_and_below_it_they_do_not(seed):
    problem = make_problem(seed)
    price = price_of(problem)

    def keeps(factor):
        choices = argmin(problem.damage + factor * price[0] * problem.costs[0])
        return (spent(choices, problem.costs) <= problem.budgets).all()

    assert keeps(1.0)
    assert not keeps(1 - 1e-6)
