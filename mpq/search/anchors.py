"""Anchors: the costs at which a search refines, compares and returns plans.

There is one at the cost of every uniform plan, and one at every target that the user names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mpq.cost import bit_limit
from mpq.errors import BudgetError
from mpq.search.guided import optimum
from mpq.search.objective import Objective
from mpq.search.space import Choices, Space

Which = Literal["all", "targets"]

AT_BUDGET = "budget"
"""Name of the anchor that only budgets bound."""

TARGET_RESOURCE = "weight_bits"
"""What targets are given in: mean stored bits of a weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A cost at which plans compete.

    Attributes:
        name: Format of the uniform plan at whose cost it lies, "3.5 bits", or "budget".
        limits: Resource -> the most bits that a plan at this anchor spends.
        uniform: The widest uniform plan that keeps the limits; None where there is none.
        uniform_name: Its format; empty where there is none.
        allocation: The additive optimum within the limits.
    """

    name: str
    limits: Mapping[str, int]
    uniform: Choices | None
    uniform_name: str
    allocation: Choices


def within(space: Space, choices: Choices, limits: Mapping[str, int]) -> bool:
    """True when the plan spends at most so many bits of each resource."""
    return all(space.bits(resource, choices) <= limit for resource, limit in limits.items())


def compared_resources(
    space: Space, traded: Sequence[str], limits: Mapping[str, int]
) -> list[str]:
    """Resources in which plans must not cost more than a uniform plan to be compared with it.

    The traded and the budgeted ones, and weights or activations where those are searched but
    neither: spending them would otherwise be free.
    """
    resources = list(dict.fromkeys([*traded, *limits]))
    if "memory_density" not in resources:
        if any(group.is_stored for group in space.groups):
            resources.append("weight_bits")
        if any(not group.is_stored for group in space.groups):
            resources.append("activation_bits")
    return list(dict.fromkeys(resources))


def uniform_within(space: Space, limits: Mapping[str, int]) -> dict[str, Choices]:
    """The uniform plans that keep the budgets, by their format, narrowest first."""
    uniform = space.uniform
    return {name: choices for name, choices in uniform.items() if within(space, choices, limits)}


def bits_of(space: Space, choices: Choices, resources: Sequence[str]) -> dict[str, int]:
    """Resource -> bits that the plan spends of it."""
    return {resource: space.bits(resource, choices) for resource in resources}


def make_anchors(
    space: Space,
    objectives: Sequence[Objective],
    *,
    compared: Sequence[str],
    limits: Mapping[str, int],
    targets: Sequence[float] = (),
    which: Which = "all",
) -> tuple[Anchor, ...]:
    """The anchors of a search, narrowest first.

    With budgets, and no cost among the objectives or no uniform plan that keeps them, one anchor
    at the budgets stands for all uniform plans. A target at exactly the cost of a uniform plan
    goes by that plan's name, where that plan has an anchor.

    Args:
        space: What is searched.
        objectives: Of the study.
        compared: Resources in which a plan must not cost more than the one it is compared with.
        limits: Resource -> the most bits that the budgets allow.
        targets: Values of weight_bits. In the other compared resources a plan at a target spends
            no more than the widest uniform plan that keeps the target, or the narrowest of all.
        which: "targets" leaves out the uniform plans' own anchors.

    Raises:
        BudgetError: A target is out of reach, or two allow the same bits.
    """
    uniform = uniform_within(space, limits)
    bounds: dict[str, dict[str, int]] = {}
    is_costed = any(objective.source == "cost" for objective in objectives)
    if limits and not (is_costed and uniform):
        bounds[AT_BUDGET] = dict(limits)
    elif which == "all":
        for name, choices in uniform.items():
            bounds[name] = {**limits, **bits_of(space, choices, compared)}
    for target, bits in _target_bits(space, limits, targets).items():
        rivals = [c for c in uniform.values() if space.bits(TARGET_RESOURCE, c) <= bits]
        rival = rivals[-1] if rivals else next(iter(space.uniform.values()))
        bound = {**limits, **bits_of(space, rival, compared), TARGET_RESOURCE: bits}
        if bound not in bounds.values():
            bounds[f"{exact(target)} bits"] = bound
    found = [_anchor(space, name, bound) for name, bound in bounds.items()]
    return tuple(sorted(found, key=lambda one: [one.limits.get(name, 0) for name in compared]))


def exact(value: float) -> str:
    """A number in as few digits as tell it from every other."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _anchor(space: Space, name: str, limits: Mapping[str, int]) -> Anchor:
    rivals = list(uniform_within(space, limits).items())
    rival_name, rival = rivals[-1] if rivals else ("", None)
    return Anchor(
        name=name,
        limits=limits,
        uniform=rival,
        uniform_name=rival_name,
        allocation=optimum(space, space.damage, limits),
    )


def _target_bits(
    space: Space, limits: Mapping[str, int], targets: Sequence[float]
) -> dict[float, int]:
    """Target -> the most bits that it allows.

    Raises:
        BudgetError: Some are below the cheapest plan, or above the dearest within the budgets, or
            two allow the same bits.
    """
    table = space.costs[TARGET_RESOURCE]
    fixed = space.fixed_costs[TARGET_RESOURCE]
    least = space.least_bits(TARGET_RESOURCE)
    most = int(table.max(axis=1).sum()) + fixed
    most = min(most, limits.get(TARGET_RESOURCE, most))
    allowed = {
        target: bit_limit(TARGET_RESOURCE, target, space.sites, space.tokens) for target in targets
    }
    values = space.values[TARGET_RESOURCE]
    # A target above the dearest plan by less than one bit in all is that plan's own cost.
    wrong = [t for t, bits in allowed.items() if bits < least or bits > most]
    if wrong:
        raise BudgetError(
            "search.targets are values of weight_bits, as --at's are, that plans of the space can "
            "have: from "
            f"{least / values:.6g} (the cheapest plan) to {most / values:.6g} (the dearest"
            f"{' that keeps the budget' if limits else ''}); out of reach: "
            f"{', '.join(exact(target) for target in wrong)}"
        )
    bits_of_each = [allowed[target] for target in targets]
    alike = [t for t in targets if bits_of_each.count(allowed[t]) > 1]
    if alike:
        raise BudgetError(
            "search.targets, as --at's values, ask for one plan each, and these allow the same "
            f"bits of all {values} weights: {', '.join(map(exact, alike))}; leave all "
            "but one of them out"
        )
    return allowed
