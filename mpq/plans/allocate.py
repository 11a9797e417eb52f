"""The additive optimum: one choice for every group, least damage in sum, within budgets.

This is the multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger, Knapsack Problems,
2004, chapter 11), with any number of resources. Costs and budgets are whole numbers (bits), and
every answer is checked in whole numbers: a solver's tolerance never exceeds a budget.

The way to the optimum: choices that another choice beats in everything go (dominance); prices for
the resources come from the linear relaxation; the Lagrangian bound at those prices, beside a
feasible answer found greedily, rules out most other choices (the reduced-cost test of the same
book, section 11.3). Of the few that are left dynamic programming finds the best under one budget,
an integer program under several.
"""

from contextlib import suppress
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mpq.errors import BudgetError, PlanError
from mpq.plans.knapsack import (
    Bools,
    Floats,
    Ints,
    Problem,
    argmin,
    integer_program,
    prices_of,
    spent,
)
from mpq.plans.one_budget import best_within, price_of

Number = TypeVar("Number", bound=np.generic)

RESOLUTION = 1e-12
"""Damages that differ by less than this part of their range are alike to the solver."""


def allocate(damage: Floats, costs: Ints, budgets: Ints) -> Ints:
    """The choice of every group with the least sum of damage within all budgets, int64 [groups].

    Deterministic; of choices that are alike the first.

    Args:
        damage: Float [groups, choices]; NaN and infinity forbid a choice.
        costs: Whole numbers >= 0 [resources, groups, choices].
        budgets: Whole numbers [resources]: the sum of each resource's costs may not be above.

    Raises:
        BudgetError: No assignment keeps the budgets; names the smallest cost in reach of each.
        PlanError: The shapes do not fit, a cost is no whole number >= 0, or a group has no
            choice that is allowed.
    """
    problem = _checked(damage, costs, budgets)
    if not len(problem.damage):
        return np.zeros(0, dtype=np.int64)
    _check_reach(problem)
    choices = argmin(problem.damage)
    if problem.keeps(choices):
        return choices
    kept = _without_dominated(problem)
    is_single = len(kept.budgets) == 1
    prices = price_of(kept) if is_single else prices_of(kept)
    incumbent = _greedy(kept, prices)
    if incumbent is None:
        return _exact(kept, incumbent)
    kept = _without_hopeless(kept, prices, incumbent)
    found = best_within(kept, float(prices[0]), incumbent) if is_single else None
    return _exact(kept, incumbent) if found is None else found


def allocate_at_price(damage: Floats, costs: Ints, prices: Floats) -> Ints:
    """The choice of every group with the least damage plus price times cost, int64 [groups].

    No solver and no budget: every group decides for itself. Of choices that are alike the first.

    Args:
        damage: Float [groups, choices]; NaN and infinity forbid a choice.
        costs: Whole numbers >= 0 [resources, groups, choices].
        prices: Float [resources]: damage that one unit of a resource is worth.

    Raises:
        PlanError: As `allocate`.
    """
    problem = _checked(damage, costs, np.zeros(len(costs), dtype=np.int64))
    return argmin(_priced(problem, np.asarray(prices, dtype=np.float64)))


def _checked(damage: Floats, costs: Ints, budgets: Ints) -> Problem:
    damage = np.asarray(damage, dtype=np.float64)
    given, bounds = np.asarray(costs), np.asarray(budgets)
    if damage.ndim != 2 or given.shape[1:] != damage.shape or bounds.shape != given.shape[:1]:
        raise PlanError(
            "damage is [groups, choices], costs [resources, groups, choices], budgets "
            f"[resources]; given {damage.shape}, {given.shape} and {bounds.shape}"
        )
    if not (np.issubdtype(given.dtype, np.integer) and np.issubdtype(bounds.dtype, np.integer)):
        raise PlanError(
            f"costs and budgets are whole numbers; given {given.dtype} and {bounds.dtype}"
        )
    if given.size and given.min() < 0:
        raise PlanError(f"costs are not below 0; given {given.min()}")
    damage = np.where(np.isfinite(damage), damage, np.inf)
    stuck = np.flatnonzero(np.isinf(damage).all(axis=1))
    if stuck.size:
        raise PlanError(
            f"every group needs a choice of finite damage; groups {stuck.tolist()} have none"
        )
    return Problem(damage, given.astype(np.int64), bounds.astype(np.int64))


def _check_reach(problem: Problem) -> None:
    """Refuses budgets that are out of reach, each looked at by itself."""
    allowed = np.isfinite(problem.damage)
    smallest = _least_costs(problem.costs, allowed)
    if (smallest > problem.budgets).any():
        raise BudgetError(_out_of_reach(problem.budgets, smallest))


def _least_costs(costs: Ints, allowed: Bools) -> Ints:
    dear = np.iinfo(np.int64).max
    return np.asarray(np.where(allowed, costs, dear).min(axis=2).sum(axis=1), dtype=np.int64)


def _out_of_reach(budgets: Ints, smallest: Ints, together: str = "") -> str:
    lines = [
        f"resource {index}: budget {budget}, smallest reachable cost {least}"
        for index, (budget, least) in enumerate(zip(budgets, smallest, strict=True))
    ]
    return (
        f"no assignment keeps the budgets{together}: {'; '.join(lines)}; "
        "raise a budget or add a cheaper choice"
    )


def _without_dominated(problem: Problem) -> Problem:
    """The problem without choices that another beats or equals in damage and in every cost."""
    damage, costs = problem.damage, problem.costs
    groups, choices = damage.shape
    beaten = np.zeros((groups, choices), dtype=bool)
    for rival in range(choices):
        better = damage[:, rival, None] <= damage
        better &= (costs[:, :, rival, None] <= costs).all(axis=0)
        # Of two that are alike in everything the first stays.
        alike = (damage[:, rival, None] == damage) & (costs[:, :, rival, None] == costs).all(0)
        later = np.arange(choices) > rival
        beaten |= better & (~alike | later)
    return Problem(np.where(beaten, np.inf, damage), costs, problem.budgets)


def _priced(problem: Problem, prices: Floats) -> Floats:
    toll = np.tensordot(prices, problem.costs, axes=1)
    return np.asarray(problem.damage + toll, dtype=np.float64)


def _greedy(problem: Problem, prices: Floats) -> Ints | None:
    """A good assignment within the budgets, or None where this simple way finds none."""
    choices = argmin(_priced(problem, prices))
    for _ in range(problem.damage.size):
        over = spent(choices, problem.costs) - problem.budgets
        if (over <= 0).all():
            return _improved(problem, choices)
        saved = _here(problem.costs, choices) - problem.costs
        # How much of the excess a move takes away; what it saves elsewhere is worth nothing.
        relief = np.minimum(saved, over[:, None, None])[over > 0] / over[over > 0, None, None]
        gain = relief.sum(axis=0)
        harm = problem.damage - _here(problem.damage[None], choices)[0]
        rate = np.where(gain > 0, harm / np.where(gain > 0, gain, 1.0), np.inf)
        group, choice = np.unravel_index(rate.argmin(), rate.shape)
        if not np.isfinite(rate[group, choice]):
            return None
        choices[group] = choice
    return None


def _improved(problem: Problem, choices: Ints) -> Ints:
    """The assignment after single moves that lower the damage and still fit, the best first."""
    while True:
        room = problem.budgets - spent(choices, problem.costs)
        added = problem.costs - _here(problem.costs, choices)
        fits = (added <= room[:, None, None]).all(axis=0)
        harm = problem.damage - _here(problem.damage[None], choices)[0]
        harm = np.where(fits, harm, np.inf)
        group, choice = np.unravel_index(harm.argmin(), harm.shape)
        if harm[group, choice] >= 0:
            return choices
        choices[group] = choice


def _here(table: npt.NDArray[Number], choices: Ints) -> npt.NDArray[Number]:
    """The entries of [n, groups, choices] at the chosen choices, as [n, groups, 1]."""
    return table[:, np.arange(len(choices)), choices][:, :, None]


def _without_hopeless(problem: Problem, prices: Floats, incumbent: Ints) -> Problem:
    """The problem without choices that cannot be part of anything better than `incumbent`.

    For any prices >= 0 the sum of every group's least priced damage, less what the budgets are
    worth, bounds the damage from below (Lagrangian relaxation); forcing a choice raises that
    bound by how far the choice lies above its group's least.
    """
    priced = _priced(problem, prices)
    least = priced.min(axis=1, keepdims=True)
    bound = float(least.sum()) - float(prices @ problem.budgets)
    slack = problem.loss(incumbent) - bound
    # The bound is a sum of rounded numbers: a thousandth part more room costs nothing.
    hopeless = priced - least > 1.001 * slack + RESOLUTION * float(np.abs(least).sum())
    hopeless[np.arange(len(incumbent)), incumbent] = False
    damage = np.where(hopeless, np.inf, problem.damage)
    return Problem(damage, problem.costs, problem.budgets)


def _exact(problem: Problem, incumbent: Ints | None) -> Ints:
    """The best of `incumbent` and what the integer program finds."""
    found = integer_program(problem)
    if found is None and incumbent is None:
        raise BudgetError(_out_of_reach_together(problem))
    known = [choices for choices in (incumbent, found) if choices is not None]
    return min(known, key=problem.loss)


def _out_of_reach_together(problem: Problem) -> str:
    """The message for budgets that are in reach one by one, and not together."""
    allowed = np.isfinite(problem.damage)
    smallest = _least_costs(problem.costs, allowed)
    for index in range(len(smallest)):
        others = np.delete(problem.costs, index, axis=0)
        wanted = np.where(allowed, problem.costs[index], np.inf)
        with suppress(BudgetError):
            choices = allocate(wanted, others, np.delete(problem.budgets, index))
            smallest[index] = spent(choices, problem.costs)[index]
    return _out_of_reach(problem.budgets, smallest, " together (each smallest while others hold)")
