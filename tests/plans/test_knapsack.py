import numpy as np
import pytest

from mpq.errors import PlanError
from mpq.plans import allocate as allocation
from mpq.plans import knapsack
from mpq.plans.allocate import allocate
from mpq.plans.knapsack import Problem, argmin, integer_program, prices_of, spent
from tests.plans.test_allocate import brute_force, loss, problem


def test_a_solver_that_breaks_the_budget_time_and_again_is_not_believed(monkeypatch):
    monkeypatch.setattr(knapsack, "MAX_CUTS", 0)
    with pytest.raises(PlanError, match=r"too large for the solver.*count in a coarser unit"):
        integer_program(Problem(*problem(0, groups=20, choices=5)))


def test_an_answer_over_the_budget_is_cut_off(monkeypatch):
    # A solver with a tolerance of 10 %: its first answers are over the budget.
    loose = knapsack.LinearConstraint

    def tolerant(matrix, low, high):
        is_budget = np.ndim(high) == 1
        return loose(matrix, low, np.asarray(high) * 1.1 if is_budget else high)

    monkeypatch.setattr(knapsack, "LinearConstraint", tolerant)
    monkeypatch.setattr(allocation, "_greedy", lambda *_: None)
    damage, costs, budgets = problem(1, groups=5, choices=4)
    choices = allocate(damage, costs, budgets)
    assert (spent(choices, costs) <= budgets).all()
    assert loss(damage, choices) == pytest.approx(brute_force(damage, costs, budgets))


@pytest.mark.parametrize("seed", range(4))
def test_the_integer_program_finds_the_optimum_and_its_prices_buy_no_better(seed):
    given = Problem(*problem(seed, groups=5, choices=4))
    found = integer_program(given)
    assert found is not None
    assert given.keeps(found)
    assert given.loss(found) == pytest.approx(
        brute_force(given.damage, given.costs, given.budgets)
    )
    # Weak duality: at any prices the priced optimum bounds the damage from below.
    prices = prices_of(given)
    assert (prices >= 0).all()
    priced = given.damage + np.tensordot(prices, given.costs, axes=1)
    bound = priced.min(axis=1).sum() - prices @ given.budgets
    assert bound <= given.loss(found) + 1e-12
    assert spent(argmin(priced), given.costs).shape == given.budgets.shape


def test_nothing_keeps_budgets_below_the_least_cost():
    given = Problem(np.zeros((2, 2)), np.full((1, 2, 2), 5), np.array([9]))
    assert integer_program(given) is None
