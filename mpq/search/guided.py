"""The guided space: a dozen numbers, decoded into a full plan by the exact additive optimum.

A sampler that sets one variable per layer hardly moves in hundreds of dimensions. Here it sets
how many bits to spend and how far the profile's damages are to be trusted; the plan is then the
optimum of the additive problem under the damages so reweighted. Neutral knobs give the plan of
the profile itself, `shrink = 1` makes all sites of a class alike, whose optimum at the bits of a
uniform plan is that uniform plan.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpq.plans.allocate import allocate
from mpq.search.space import Choices, FloatArray, IntArray, Space

STEPS_PER_GAP = 4
"""Steps of a ladder between two neighbouring stops."""

Ladders = Mapping[str, IntArray]
"""Traded resource -> the budgets that a trial may aim at, in bits, ascending."""

TILT = 1.5
KIND = 1.5
"""Largest natural logarithm of the factors that `tilt` and `kind.*` put on a damage (4.5x)."""

JITTERS = tuple(0.1 * 1.2**attempt for attempt in range(16))
"""Standard deviations of the natural logarithm of the factors that are put on the damages of a
plan which was tried before, one after the other until there is a new one."""

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


def knobs(space: Space, ladders: Ladders) -> tuple[Knob, ...]:
    """The numbers that a guided trial sets.

    Args:
        space: What is searched.
        ladders: Each of their resources gets an aim in bits a value, unless there is one only.
    """
    found = []
    for resource, steps in ladders.items():
        # Nobody need aim at the cost of the cheapest plan: it is the only one there, and a seed.
        is_single = len(ladders) == 1 and len(steps) > 1 and steps[0] == space.least_bits(resource)
        ends = (steps[1 if is_single else 0], steps[-1])
        low, high = (float(step) / space.values[resource] for step in ends)
        if low < high:
            found.append(Knob(name=_BITS_KNOBS[resource], low=low, high=high, neutral=high))
    found.append(Knob(name="shrink", low=0.0, high=1.0, neutral=0.0))
    found.append(Knob(name="power", low=0.5, high=2.0, neutral=1.0))
    found.append(Knob(name="tilt", low=-TILT, high=TILT, neutral=0.0))
    kinds = dict.fromkeys(group.kind for group in space.groups)
    if len(kinds) > 1:
        found += [Knob(name=f"kind.{k}", low=-KIND, high=KIND, neutral=0.0) for k in kinds]
    return tuple(found)


def ladder(stops: Iterable[int], limit: int | None = None) -> IntArray:
    """Budgets for a resource, in bits, ascending: the stops, and equal steps between them.

    Trials that aim at one step cost the same, so their damages compare; the costs at which plans
    are compared are among the stops, so that trials can win there.

    Args:
        stops: Bits, at least one.
        limit: The most bits that a budget allows: no step is above it, and the last one is it
            where stops are above it.
    """
    ends = sorted(set(stops))
    between = [
        low + (high - low) * step // STEPS_PER_GAP
        for low, high in itertools.pairwise(ends)
        for step in range(STEPS_PER_GAP)
    ]
    steps = np.array([*between, ends[-1]], dtype=np.int64)
    if limit is None:
        return steps
    return np.unique(np.append(steps[steps < limit], min(limit, int(steps[-1]))))


def uniform_stops(space: Space, resource: str) -> set[int]:
    """What the uniform plans and the cheapest plan spend of a resource."""
    spent = {space.bits(resource, choices) for choices in space.uniform.values()}
    return spent | {space.least_bits(resource)}


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
    space: Space,
    params: Mapping[str, float],
    ladders: Ladders,
    limits: Mapping[str, int],
    is_tried: Callable[[Choices], bool] = lambda _: False,
) -> Choices:
    """The plan that the knobs describe: the additive optimum under the reweighted damages.

    An aim between two steps of a ladder is the lower one. Knobs that lie close together describe
    the same plan, and a population soon gathers in such a place: in place of a plan that was
    tried, the optimum at the same cost comes back whose damages are off by ever larger factors
    (drawn from the plan itself, so that a resumed search draws them again).

    Args:
        space: What is searched.
        params: A value for each knob.
        ladders: What the knobs of bits aim at.
        limits: Resource -> the most bits that the budgets allow.
        is_tried: True of plans that would say nothing new. One comes back all the same where
            damages that are off by `JITTERS` lead to no other.
    """
    bounds = dict(limits)
    for resource, steps in ladders.items():
        # Half a bit makes up for the rounding of the division by the number of values.
        bits = params.get(_BITS_KNOBS[resource], np.inf) * space.values[resource] + 0.5
        step = max(0, int(np.searchsorted(steps, bits, side="right")) - 1)
        bounds[resource] = int(steps[step])
    damage = reweighted(space, params)
    found = choices = optimum(space, damage, bounds)
    for attempt, jitter in enumerate(JITTERS):
        if not is_tried(found):
            return found
        draw = np.random.default_rng([*choices, attempt]).normal(size=(len(damage), 1))
        found = optimum(space, damage * np.exp(jitter * draw), bounds)
    return choices if is_tried(found) else found


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
    mixed = (1 - shrink) * _finite(space.damage) + shrink * space.average_damage
    depth = np.array([group.depth for group in space.groups])
    kind = np.array([params.get(f"kind.{group.kind}", 0.0) for group in space.groups])
    factor = np.exp(params["tilt"] * (2 * depth - 1) + kind)
    damage = mixed ** params["power"] * factor[:, None]
    return np.where(np.isfinite(space.damage), damage, np.inf)


def _finite(damage: FloatArray) -> FloatArray:
    return np.where(np.isfinite(damage), damage, 0.0)
