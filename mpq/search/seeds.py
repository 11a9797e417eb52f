"""The first trials: uniform plans, and the additive optimum on a ladder of budgets.

They are the baselines that a search has to beat, and what its samplers start from.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mpq.search.guided import Knob, neutral_params, optimum
from mpq.search.space import Choices, Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """A plan to try first.

    Attributes:
        source: Which baseline it is.
        choices: The plan.
        params: What a sampler is told about it: the guided knobs nearest to it, or nothing in
            the direct space, where the choices are the parameters.
        anchor: Name of the uniform plan that this is, or whose cost it keeps to; else empty.
    """

    source: Literal["uniform", "allocation"]
    choices: Choices
    params: Mapping[str, float]
    anchor: str = ""


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


def seeds(
    space: Space,
    *,
    settings: Sequence[Knob],
    compared: Sequence[str],
    limits: Mapping[str, int],
    trials: int,
) -> list[Seed]:
    """The trials to queue before a sampler is asked, none twice.

    First the optimum under the budgets, then each uniform plan within them and the optimum at
    its cost, then optima half-way between neighbouring uniform plans. The baselines take no more
    than all trials, the half-way points no more than half of them.

    Args:
        space: What is searched.
        settings: The knobs of the guided space; empty for the direct one.
        compared: Resources that tie an optimum to the cost of a uniform plan.
        limits: Resource -> the most bits that a budget allows.
        trials: How many trials the study has.
    """
    found: dict[Choices, Seed] = {}

    def add(source: Literal["uniform", "allocation"], choices: Choices, anchor: str = "") -> None:
        params = neutral_params(space, settings, bits_of(space, choices, compared))
        if "shrink" in params:
            params["shrink"] = 1.0 if source == "uniform" else 0.0
        seed = Seed(source=source, choices=choices, params=params, anchor=anchor)
        # An optimum that is a uniform plan goes by the uniform plan's name.
        if source == "uniform" or choices not in found:
            found[choices] = seed

    uniform = uniform_within(space, limits)
    if limits:
        add("allocation", optimum(space, space.damage, limits))
    for anchor, choices in uniform.items():
        add("uniform", choices, anchor)
        bounds = tightest(bits_of(space, choices, compared), limits)
        add("allocation", optimum(space, space.damage, bounds), anchor)
    baselines = list(found.values())[:trials]
    for low, high in itertools.pairwise(uniform.values()):
        ends = bits_of(space, low, compared), bits_of(space, high, compared)
        middle = {name: (ends[0][name] + ends[1][name]) // 2 for name in compared}
        add("allocation", optimum(space, space.damage, tightest(middle, limits)))
    halfway = list(found.values())[len(baselines) :]
    return baselines + halfway[: max(0, trials // 2 - len(baselines))]


def tightest(bounds: Mapping[str, int], limits: Mapping[str, int]) -> dict[str, int]:
    """Resource -> the lower of the two bounds, where both have one."""
    return {
        name: min(table[name] for table in (bounds, limits) if name in table)
        for name in {**bounds, **limits}
    }
