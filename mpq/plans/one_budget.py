"""The exact optimum where there is one budget only: dynamic programming over few partial answers.

Branch and bound takes seconds on problems whose groups are much alike, as a model's layers are;
here alike partial answers fall together.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mpq.plans.knapsack import Floats, Ints, Problem, argmin, spent

Number = TypeVar("Number", np.int64, np.float64)

Step = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]
"""A group decided: for each partial answer the one that it grew from, and the choice."""

MAX_STATES = 1 << 20
"""Partial answers kept in all, a second's work, before an integer program is asked instead."""

BISECTIONS = 64


def price_of(problem: Problem) -> Floats:
    """Damage a unit of the resource is worth, float64 [1]: where the Lagrangian bound is best.

    The least price at which the groups, each by itself, keep the budget (Kellerer, Pferschy and
    Pisinger, Knapsack Problems, 2004, section 11.2), found by bisection. Any price gives a valid
    bound, so its last digits do not matter.
    """
    allowed = np.isfinite(problem.damage)
    costs = problem.costs[0]
    low, high = 0.0, float(np.ptp(problem.damage[allowed])) + np.finfo(np.float64).tiny
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        within = spent(argmin(problem.damage + middle * costs), problem.costs) <= problem.budgets
        low, high = (low, middle) if within.all() else (middle, high)
    return np.array([high])


def best_within(problem: Problem, price: float, incumbent: Ints) -> Ints | None:
    """The optimum, int64 [groups]; None where it takes more than `MAX_STATES` partial answers.

    Groups are decided one after the other. A partial answer is dropped when another one costs no
    more and does no more damage, or when the Lagrangian bound of its best completion is above the
    incumbent's damage (Pisinger, "A minimal algorithm for the multiple-choice knapsack problem",
    European Journal of Operational Research 83, 1995).

    Args:
        problem: With one budget, which `incumbent` keeps.
        price: Damage that a unit of the resource is worth; any number >= 0 gives the same answer.
        incumbent: A good assignment, int64 [groups].
    """
    num_choices = np.isfinite(problem.damage).sum(axis=1)
    groups = np.argsort(num_choices, kind="stable")[(num_choices == 1).sum() :]
    swept = _swept(problem, price, groups, problem.loss(incumbent))
    if swept is None:
        return None
    loss, steps = swept
    if not len(loss):
        return incumbent
    answer, state = argmin(problem.damage), int(loss.argmin())
    for group, (parents, choices) in zip(groups[::-1], reversed(steps), strict=True):
        answer[group] = choices[state]
        state = int(parents[state])
    return min((incumbent, answer), key=problem.loss)


def _swept(
    problem: Problem, price: float, groups: Ints, best: float
) -> tuple[Floats, list[Step]] | None:
    """Damages of the full answers that may be better than `best`, and the steps to them.

    None where it takes more than `MAX_STATES` partial answers.

    Args:
        problem: As for `best_within`.
        price: As for `best_within`.
        groups: In which order groups with several choices are decided; the others are already.
        best: Damage of the incumbent.
    """
    costs, budget = problem.costs[0], int(problem.budgets[0])
    allowed = np.isfinite(problem.damage)
    dear = np.iinfo(np.int64).max
    cheapest = _after(np.where(allowed, costs, dear).min(axis=1)[groups])
    least = _after((problem.damage + price * costs).min(axis=1)[groups])
    # Sums are rounded: a little room keeps every answer that might be better.
    limit = best + price * budget + 1e-9 * (abs(best) + price * budget)
    decided = np.delete(np.arange(len(costs)), groups)
    only = argmin(problem.damage)[decided]
    cost = costs[decided, only].sum(keepdims=True)
    loss = problem.damage[decided, only].sum(keepdims=True)
    steps: list[Step] = []
    left = MAX_STATES
    for group, least_cost, least_loss in zip(groups, cheapest, least, strict=True):
        choices = np.flatnonzero(allowed[group])
        cost = (cost[:, None] + costs[group, choices]).ravel()
        loss = (loss[:, None] + problem.damage[group, choices]).ravel()
        is_open = (cost + least_cost <= budget) & (loss + price * cost + least_loss <= limit)
        kept = np.flatnonzero(is_open)
        kept = kept[_undominated(cost[kept], loss[kept])]
        cost, loss, left = cost[kept], loss[kept], left - len(kept)
        if left < 0:
            return None
        parents, chosen = np.divmod(kept, len(choices))
        steps.append((parents.astype(np.int32), choices[chosen].astype(np.int32)))
    return loss, steps


def _after(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """The sum of the entries behind each one."""
    return np.asarray(values[::-1].cumsum()[::-1] - values, dtype=values.dtype)


def _undominated(cost: Ints, loss: Floats) -> Ints:
    """Places of the entries that cost less or lose less than every other, by ascending cost."""
    order = np.lexsort((loss, cost))
    ranked = loss[order]
    before = np.concatenate(([np.inf], np.minimum.accumulate(ranked)[:-1]))
    return order[ranked < before]
