"""The guided space: a dozen numbers, decoded into a full plan by the exact additive optimum.

A sampler that sets one variable per layer hardly moves in hundreds of dimensions. Here it sets
how many bits to spend and how far the profile's damages are to be trusted; the plan is then the
optimum of the additive problem under the damages so reweighted. Neutral knobs give the plan of
the profile itself, `shrink = 1` makes all sites of a class alike, whose optimum at the bits of a
uniform plan is that uniform plan.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpq.plans.allocate import allocate
from mpq.search.space import Choices, FloatArray, IntArray, Space

RUNGS_PER_GAP = 4
"""Budgets that a trial may aim at between the costs of two neighbouring uniform plans."""

TILT = 1.5
KIND = 1.5
"""Largest natural logarithm of the factors that `tilt` and `kind.*` put on a damage (4.5x)."""

_BITS_KNOBS = {
    "weight_bits": "bits.weight",
    "activation_bits": "bits.activation",
    "memory_density": "bits.memory",
    "kv_bytes": "bits.kv",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One number of the guided space: its range, and the value that leaves the profile as is."""

    name: str
    low: float
    high: float
    neutral: float


def knobs(space: Space, traded: Sequence[str], limits: Mapping[str, int]) -> tuple[Knob, ...]:
    """The numbers that a guided trial sets.

    Args:
        space: What is searched.
        traded: Resources whose cost is an objective: each gets a target in bits a value.
        limits: Resource -> the most bits that a budget allows; the upper end of its target.
    """
    found = []
    for resource in traded:
        rungs = ladder(space, resource, limits.get(resource))
        low, high = (float(rung) / space.values[resource] for rung in (rungs[0], rungs[-1]))
        found.append(Knob(name=_BITS_KNOBS[resource], low=low, high=high, neutral=high))
    found.append(Knob(name="shrink", low=0.0, high=1.0, neutral=0.0))
    found.append(Knob(name="power", low=0.5, high=2.0, neutral=1.0))
    found.append(Knob(name="tilt", low=-TILT, high=TILT, neutral=0.0))
    kinds = dict.fromkeys(group.kind for group in space.groups)
    if len(kinds) > 1:
        found += [Knob(name=f"kind.{k}", low=-KIND, high=KIND, neutral=0.0) for k in kinds]
    return tuple(found)


def ladder(space: Space, resource: str, limit: int | None = None) -> IntArray:
    """Budgets for a resource, in bits, ascending: the uniform plans' costs and steps between.

    Trials that aim at one rung cost the same, so their damages compare; the rungs of the uniform
    plans are among them, so that the search can beat those at their own cost.
    """
    table = space.costs[resource]
    fixed = space.fixed_costs[resource]
    costs = {space.bits(resource, choices) for choices in space.uniform.values()}
    ends = sorted(costs | {int(table.min(axis=1).sum()) + fixed})
    steps = [
        low + (high - low) * step // RUNGS_PER_GAP
        for low, high in itertools.pairwise(ends)
        for step in range(RUNGS_PER_GAP)
    ]
    rungs = np.array([*steps, ends[-1]], dtype=np.int64)
    if limit is None:
        return rungs
    return np.unique(np.append(rungs[rungs < limit], min(limit, int(rungs[-1]))))


def neutral_params(
    space: Space, settings: Sequence[Knob], bits: Mapping[str, int]
) -> dict[str, float]:
    """Knobs that leave the profile as it is, aimed at so many bits of each traded resource."""
    params = {knob.name: knob.neutral for knob in settings}
    for resource, target in bits.items():
        name = _BITS_KNOBS[resource]
        if name in params:
            knob = next(knob for knob in settings if knob.name == name)
            params[name] = min(max(target / space.values[resource], knob.low), knob.high)
    return params


def decode(
    space: Space, params: Mapping[str, float], traded: Sequence[str], limits: Mapping[str, int]
) -> Choices:
    """The plan that the knobs describe: the additive optimum under the reweighted damages.

    A target between two rungs of the ladder is the lower one.
    """
    bounds = dict(limits)
    for resource in traded:
        rungs = ladder(space, resource, limits.get(resource))
        # Half a bit makes up for the rounding of the division by the number of values.
        target = params[_BITS_KNOBS[resource]] * space.values[resource] + 0.5
        rung = max(0, int(np.searchsorted(rungs, target, side="right")) - 1)
        bounds[resource] = int(rungs[rung])
    return optimum(space, reweighted(space, params), bounds)


def optimum(space: Space, damage: FloatArray, bounds: Mapping[str, int]) -> Choices:
    """The choices of least summed `damage` that spend at most `bounds` bits of each resource."""
    resources = list(bounds)
    costs = np.array([space.costs[name] for name in resources], dtype=np.int64)
    budgets = np.array([bounds[r] - space.fixed_costs[r] for r in resources], dtype=np.int64)
    if not resources:
        return tuple(int(choice) for choice in np.argmin(damage, axis=1))
    return tuple(int(choice) for choice in allocate(damage, costs, budgets))


def reweighted(space: Space, params: Mapping[str, float]) -> FloatArray:
    """`[G, C]`: the damages as the knobs see them.

    `((1 - shrink) own + shrink average) ^ power * exp(tilt (2 depth - 1) + kind)`, where
    `average` is what a group of that size would suffer if all sites of its class (stored or
    not) were alike.
    """
    shrink = params["shrink"]
    mixed = (1 - shrink) * _finite(space.damage) + shrink * _average(space)
    depth = np.array([group.depth for group in space.groups])
    kind = np.array([params.get(f"kind.{group.kind}", 0.0) for group in space.groups])
    factor = np.exp(params["tilt"] * (2 * depth - 1) + kind)
    damage = mixed ** params["power"] * factor[:, None]
    return np.where(np.isfinite(space.damage), damage, np.inf)


def _finite(damage: FloatArray) -> FloatArray:
    return np.where(np.isfinite(damage), damage, 0.0)


def _average(space: Space) -> FloatArray:
    """`[G, C]`: size of the group times the mean damage a value of the format in its class."""
    sums: dict[tuple[bool, str], tuple[float, int]] = {}
    for group, row in zip(space.groups, space.damage, strict=True):
        for fmt, value in zip(group.candidates, row, strict=False):
            if np.isfinite(value):
                key = (group.is_stored, str(fmt))
                total, values = sums.get(key, (0.0, 0))
                sums[key] = (total + float(value), values + group.values)
    table = np.zeros_like(space.damage)
    for index, group in enumerate(space.groups):
        for column, fmt in enumerate(group.candidates):
            total, values = sums.get((group.is_stored, str(fmt)), (0.0, 1))
            table[index, column] = group.values * total / values
    return table
