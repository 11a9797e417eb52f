from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq.errors import BudgetError, PlanError
from mpq.plans.allocate import allocate, allocate_at_price, spent


def problem(seed, *, groups, choices, resources=1, forbidden=0.0):
    """A random problem of the shape that plans have: damage falls as bits rise, mostly."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 2, 3, 8], groups) * 64
    bits = np.sort(rng.integers(4, 40, (resources, groups, choices)), axis=2)
    costs = (bits * sizes[:, None]).astype(np.int64)
    damage = 10 ** rng.uniform(-6, 0, (groups, 1)) * 4.0 ** (-bits[0] / 8)
    damage *= rng.uniform(0.5, 1.5, damage.shape)
    damage[rng.random(damage.shape) < forbidden] = rng.choice([np.nan, np.inf])
    damage[:, 0] = np.where(np.isfinite(damage[:, 0]), damage[:, 0], 1.0)
    low, high = costs.min(axis=2).sum(axis=1), costs.max(axis=2).sum(axis=1)
    budgets = (low + (high - low) * rng.uniform(0.05, 0.8, resources)).astype(np.int64)
    return damage, costs, budgets


def loss(damage, choices):
    return damage[np.arange(len(choices)), choices].sum()


def brute_force(damage, costs, budgets):
    """The least damage of all assignments within the budgets; None where there is none."""
    groups, choices = damage.shape
    best = None
    for given_choices in product(range(choices), repeat=groups):
        total = loss(damage, given_choices)
        kept = (costs[:, np.arange(groups), given_choices].sum(axis=1) <= budgets).all()
        if kept and np.isfinite(total) and (best is None or total < best):
            best = total
    return best


def lagrangian_bound(damage, costs, budgets):
    """A lower bound on the damage of one resource's optimum, by bisection on the price."""
    low, high = 0.0, 1.0
    best = -np.inf
    for _ in range(200):
        price = (low + high) / 2
        priced = damage + price * costs[0]
        picked = priced.argmin(axis=1)
        best = max(best, priced.min(axis=1).sum() - price * budgets[0])
        over = costs[0][np.arange(len(picked)), picked].sum() > budgets[0]
        low, high = (price, high) if over else (low, price)
    return best


@pytest.mark.parametrize("resources", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_small_problems_are_solved_as_brute_force_solves_them(seed, resources):
    given_problem = problem(seed, groups=5, choices=4, resources=resources, forbidden=0.15)
    damage, costs, budgets = given_problem
    best = brute_force(*given_problem)
    if best is None:
        with pytest.raises(BudgetError):
            allocate(*given_problem)
        return
    choices = allocate(*given_problem)
    assert (spent(choices, costs) <= budgets).all()
    assert loss(damage, choices) == pytest.approx(best, rel=1e-9)


@given(
    st.integers(1, 4).flatmap(
        lambda groups: st.tuples(
            st.lists(
                st.lists(st.integers(0, 6), min_size=3, max_size=3),
                min_size=groups,
                max_size=groups,
            ),
            st.lists(
                st.lists(st.integers(0, 9), min_size=3, max_size=3),
                min_size=groups,
                max_size=groups,
            ),
            st.integers(0, 30),
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_ties_zeros_and_tight_budgets(case):
    damage, costs, budget = np.array(case[0], float), np.array([case[1]]), np.array([case[2]])
    best = brute_force(damage, costs, budget)
    if best is None:
        with pytest.raises(BudgetError):
            allocate(damage, costs, budget)
        return
    choices = allocate(damage, costs, budget)
    assert spent(choices, costs)[0] <= budget[0]
    assert loss(damage, choices) == best


@pytest.mark.parametrize("seed", range(3))
def test_hundreds_of_groups_come_close_to_the_bound_that_nothing_beats(seed):
    damage, costs, budgets = problem(seed, groups=200, choices=7)
    choices = allocate(damage, costs, budgets)
    assert spent(choices, costs)[0] <= budgets[0]
    bound = lagrangian_bound(damage, costs, budgets)
    # The gap of the relaxation is at most what one group can gain; with 200 it is tiny.
    assert bound <= loss(damage, choices) * (1 + 1e-12)
    assert loss(damage, choices) <= bound * 1.01


def test_hundreds_of_groups_under_three_budgets_keep_them_all():
    damage, costs, budgets = problem(7, groups=200, choices=7, resources=3)
    budgets = np.maximum(budgets, spent(np.full(200, 3), costs))
    choices = allocate(damage, costs, budgets)
    assert (spent(choices, costs) <= budgets).all()
    assert loss(damage, choices) <= loss(damage, np.full(200, 3))


def test_small_differences_of_damage_are_told_apart():
    # HiGHS stops at an absolute gap of 1e-6: unscaled, all of these are optimal to it.
    damage = np.array([[4e-9, 3e-9, 1e-9], [9e-9, 2e-9, 1e-9], [5e-9, 4e-9, 3.5e-9]])
    costs = np.array([[[1, 2, 3]] * 3])
    for budget in range(3, 10):
        choices = allocate(damage, costs, np.array([budget]))
        assert loss(damage, choices) == brute_force(damage, costs, np.array([budget]))


@pytest.mark.parametrize("seed", range(6))
def test_a_budget_is_kept_to_the_last_bit_of_large_numbers(seed):
    # Costs beyond the solver's resolution, without a common unit, under a budget that one of the
    # assignments meets exactly.
    rng = np.random.default_rng(seed)
    costs = rng.integers(10**12, 2 * 10**12, (1, 6, 4))
    damage = -costs[0] * rng.uniform(0.999999, 1.000001, (6, 4)) / 1e12
    exact = spent(rng.integers(0, 4, 6), costs)
    for slack in (0, -1):
        choices = allocate(damage, costs, exact + slack)
        assert spent(choices, costs)[0] <= exact[0] + slack
        assert loss(damage, choices) == pytest.approx(
            brute_force(damage, costs, exact + slack), rel=1e-12
        )


def test_without_pressure_every_group_takes_its_least_damage():
    damage = np.array([[1.0, 0.5, 0.7], [0.1, 0.1, 0.2]])
    costs = np.array([[[1, 9, 3], [5, 6, 7]]])
    assert allocate(damage, costs, np.array([100])).tolist() == [1, 0]


def test_the_same_problem_has_the_same_answer():
    given_problem = problem(3, groups=60, choices=6, resources=2)
    answers = {tuple(allocate(*given_problem).tolist()) for _ in range(3)}
    assert len(answers) == 1


def test_damage_that_is_not_known_forbids_the_choice():
    damage = np.array([[np.nan, 1.0, np.inf], [0.0, np.nan, 2.0]])
    costs = np.array([[[1, 5, 1], [9, 1, 3]]])
    assert allocate(damage, costs, np.array([20])).tolist() == [1, 0]
    assert allocate(damage, costs, np.array([8])).tolist() == [1, 2]


def test_no_groups_need_no_choices():
    assert allocate(np.zeros((0, 3)), np.zeros((1, 0, 3), int), np.array([5])).tolist() == []


def test_without_resources_nothing_holds_anyone_back():
    damage = np.array([[2.0, 1.0]])
    assert allocate(damage, np.zeros((0, 1, 2), int), np.zeros(0, int)).tolist() == [1]


def test_a_budget_out_of_reach_names_the_smallest_cost_in_reach():
    damage = np.array([[1.0, 2.0], [np.nan, 2.0]])
    costs = np.array([[[4, 3], [1, 6]], [[1, 1], [1, 1]]])
    with pytest.raises(
        BudgetError,
        match=r"resource 0: budget 8, smallest reachable cost 9; resource 1: budget 5, .* cost 2; "
        r"raise a budget",
    ):
        allocate(damage, costs, np.array([8, 5]))


def test_budgets_that_only_together_are_out_of_reach_say_so():
    costs = np.array([[[0, 10]], [[10, 0]]])
    with pytest.raises(
        BudgetError,
        match=r"together \(each smallest while others hold\): resource 0: budget 5, smallest "
        r"reachable cost 10; resource 1: budget 4, smallest reachable cost 10",
    ):
        allocate(np.array([[1.0, 2.0]]), costs, np.array([5, 4]))


def test_many_budgets_out_of_reach_together_are_found_by_the_solver():
    rng = np.random.default_rng(0)
    costs = rng.integers(1, 100, (1, 8, 5))
    costs = np.concatenate([costs, 100 - costs])
    # Each alone is in reach, and the two sums are always 800 in all.
    with pytest.raises(BudgetError, match="together"):
        allocate(rng.random((8, 5)), costs, np.array([390, 390]))


@pytest.mark.parametrize(
    ("damage", "costs", "budgets", "match"),
    [
        (np.zeros((2, 3)), np.zeros((1, 2, 2), int), np.zeros(1, int), r"given \(2, 3\), \(1, 2"),
        (np.zeros(3), np.zeros((1, 3), int), np.zeros(1, int), r"damage is \[groups, choices\]"),
        (np.zeros((2, 3)), np.zeros((1, 2, 3), int), np.zeros(2, int), r"and \(2,\)"),
        (np.zeros((2, 3)), np.zeros((1, 2, 3)), np.zeros(1, int), "whole numbers; given float64"),
        (np.zeros((2, 3)), np.zeros((1, 2, 3), int), np.zeros(1), "int64 and float64"),
        (np.zeros((1, 1)), np.array([[[-1]]]), np.zeros(1, int), "not below 0; given -1"),
        (
            np.array([[0.0], [np.nan], [np.inf]]),
            np.zeros((1, 3, 1), int),
            np.zeros(1, int),
            r"groups \[1, 2\] have none",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_refused(damage, costs, budgets, match):
    with pytest.raises(PlanError, match=match):
        allocate(damage, costs, budgets)


def test_at_a_price_every_group_decides_for_itself():
    damage = np.array([[4.0, 2.0, 0.0], [0.4, 0.2, 0.0], [np.nan, 1.0, 0.5]])
    costs = np.array([[[1, 2, 3]] * 3])
    assert allocate_at_price(damage, costs, np.array([0.0])).tolist() == [2, 2, 2]
    assert allocate_at_price(damage, costs, np.array([0.3])).tolist() == [2, 0, 2]
    assert allocate_at_price(damage, costs, np.array([9.0])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_what_a_price_buys_is_the_optimum_at_its_own_cost(seed):
    damage, costs, _ = problem(seed, groups=30, choices=6)
    choices = allocate_at_price(damage, costs, np.array([1e-5]))
    budget = spent(choices, costs)
    assert loss(damage, allocate(damage, costs, budget)) == pytest.approx(loss(damage, choices))


def test_prices_are_checked_like_budgets():
    with pytest.raises(PlanError, match="groups \\[0\\] have none"):
        allocate_at_price(np.array([[np.nan]]), np.array([[[1]]]), np.array([0.0]))
