"""The multiple-choice knapsack problem as a solver sees it: its relaxation and its optimum.

Costs and budgets are whole numbers (bits), and every answer is checked in whole numbers: the
solver's tolerance never exceeds a budget. The solver is HiGHS, by way of scipy.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from mpq.errors import PlanError
from mpq.plans.mute import muted_stdout

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

OBJECTIVE_RANGE = 1e7
"""What the damages' range is scaled to. HiGHS stops at an absolute gap of 1e-6, whatever the
relative one says, and damages are small numbers."""

MAX_CUTS = 100
"""How many answers that break a budget within the solver's tolerance are cut off, one by one."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is decided.

    Attributes:
        damage: `[groups, choices]`; +inf forbids a choice.
        costs: `[resources, groups, choices]`, whole numbers.
        budgets: `[resources]`: the sum of each resource's costs may not be above.
    """

    damage: Floats
    costs: Ints
    budgets: Ints

    def loss(self, choices: Ints) -> float:
        """The damage of an assignment, in sum."""
        return float(self.damage[np.arange(len(choices)), choices].sum())

    def keeps(self, choices: Ints) -> bool:
        """True when an assignment is within every budget."""
        return bool((spent(choices, self.costs) <= self.budgets).all())


def spent(choices: Ints, costs: Ints) -> Ints:
    """The sum of each resource's costs at the chosen choices, int64 [resources]."""
    return np.asarray(costs[:, np.arange(len(choices)), choices].sum(axis=1), dtype=np.int64)


def argmin(table: Floats) -> Ints:
    """The first of the least entries of every row, int64 [rows]."""
    return np.asarray(table.argmin(axis=1), dtype=np.int64)


def prices_of(problem: Problem) -> Floats:
    """Damage a unit of each resource is worth, from the linear relaxation; 0 where it fails."""
    allowed = np.isfinite(problem.damage)
    unit = np.maximum(problem.costs.max(axis=(1, 2)), 1)
    scale = _scale(problem)
    found = linprog(  # type: ignore[call-overload]  # the stubs know no sparse A_eq
        problem.damage[allowed] * scale,
        A_ub=problem.costs[:, allowed] / unit[:, None],
        b_ub=problem.budgets / unit,
        A_eq=_one_each(allowed),
        b_eq=np.ones(len(allowed)),
        method="highs",
    )
    if found.status != 0:
        return np.zeros(len(unit))
    marginals = np.asarray(found.ineqlin.marginals, dtype=np.float64)
    return np.asarray(np.maximum(-marginals, 0.0) / (unit * scale), dtype=np.float64)


def integer_program(problem: Problem) -> Ints | None:
    """The optimum by branch and bound, or None where nothing keeps the budgets.

    Raises:
        PlanError: Costs and budgets are too large for the solver to tell apart.
    """
    allowed = np.isfinite(problem.damage)
    group, choice = np.nonzero(allowed)
    # Costs above each group's least, in their greatest common unit: small whole numbers, whose
    # sums the solver's absolute tolerance of 1e-6 does not blur.
    least = np.where(allowed, problem.costs, np.iinfo(np.int64).max).min(axis=2)
    extra = problem.costs[:, group, choice] - least[:, group]
    unit = np.maximum(np.gcd.reduce(extra, axis=1), 1)
    room = (problem.budgets - least.sum(axis=1)) // unit
    if (room < 0).any():
        return None
    rows = extra // unit[:, None]
    rules = [LinearConstraint(_one_each(allowed), 1, 1), LinearConstraint(rows, -np.inf, room)]
    objective = problem.damage[group, choice] * _scale(problem)
    for _ in range(MAX_CUTS):
        with muted_stdout():
            found = milp(
                objective,
                constraints=rules,
                integrality=np.ones(len(objective), dtype=np.int64),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": 0.0},
            )
        if found.x is None:
            return None
        chosen = np.zeros(problem.damage.shape)
        chosen[group, choice] = found.x
        choices = argmin(-chosen)
        if problem.keeps(choices):
            return choices
        rules.append(_cut(problem, choices, allowed))
    raise PlanError(
        "costs and budgets are too large for the solver to tell apart (1e-6 of their common "
        f"unit); budgets {problem.budgets.tolist()}: count in a coarser unit"
    )


def _cut(problem: Problem, choices: Ints, allowed: Bools) -> LinearConstraint:
    """A rule that `choices` break and no assignment within the budgets does: a cover cut.

    Where the chosen costs exceed a budget, so do any that are at least as high in every group:
    not all groups may choose that high.
    """
    over = int((spent(choices, problem.costs) - problem.budgets).argmax())
    costs = problem.costs[over]
    as_high = costs >= costs[np.arange(len(choices)), choices][:, None]
    return LinearConstraint(as_high[allowed][None].astype(np.float64), -np.inf, len(choices) - 1)


def _scale(problem: Problem) -> float:
    finite = problem.damage[np.isfinite(problem.damage)]
    spread = float(np.ptp(finite))
    return OBJECTIVE_RANGE / spread if spread > 0 else 1.0


def _one_each(allowed: Bools) -> csr_array:
    """Rows that sum the variables of each group; variables are the allowed choices in order."""
    group = np.nonzero(allowed)[0]
    ones = np.ones(len(group))
    return csr_array((ones, (group, np.arange(len(group)))), shape=(len(allowed), len(group)))
