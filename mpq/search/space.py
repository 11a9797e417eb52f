"""The searched part of a model as arrays: groups, their candidate formats, damage and bits.

A *choice* is an index into a group's candidates, sorted by bits; a plan of the space is a tuple
of choices, one a group. Everything that must be exact (budgets, comparisons of cost) is counted
here in integer bits.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpq.cost import COST_MEASURES, Cost, bit_limit, cost, measure_value
from mpq.errors import BudgetError
from mpq.formats.format import Format
from mpq.plans.plan import Plan
from mpq.plans.site import Site

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Choices = tuple[int, ...]

RESOURCES = ("weight_bits", "activation_bits", "memory_density", "kv_bytes")
"""What plans spend, in bits, under the name of the cost measure that counts it."""


def resource_of(measure: str) -> str:
    """The resource behind a cost measure: weight_bytes counts the same bits as weight_bits."""
    return "weight_bits" if measure == "weight_bytes" else measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Sites that take one format together.

    Attributes:
        name: The fused group's name, or the site's own.
        sites: Names of the sites.
        kind: The family that guided multipliers act on, such as `o_proj.weight`.
        depth: 0 in the first block, 1 in the last; 0.5 outside of blocks.
        is_stored: True for tensors of the checkpoint, False for activations.
        values: Values in the group's tensors, activations counted over one sequence.
        candidates: The formats that may be chosen, fewest bits first.
    """

    name: str
    sites: tuple[str, ...]
    kind: str
    depth: float
    is_stored: bool
    values: int
    candidates: tuple[Format, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """Everything that the search may vary, and what it costs.

    Attributes:
        groups: What is chosen for; `G` of them.
        fixed: Sites that are held at one format.
        damage: `[G, C]` in nats per token, summed over a group's sites; `inf` where a group has
            no such choice or it was not measured.
        costs: Resource -> `[G, C]` bits; columns beyond a group's candidates repeat its last.
        fixed_costs: Resource -> bits of all sites outside of the groups.
        values: Resource -> values that its mean bits a value are taken over.
        sites: All sites of the model, searched or not.
        tokens: Length of the sequence that activations are counted for.
        model: Id of the model.
        fingerprint: Of the model's weights.
    """

    groups: tuple[Group, ...]
    fixed: Mapping[str, Format]
    damage: FloatArray
    costs: Mapping[str, IntArray]
    fixed_costs: Mapping[str, int]
    values: Mapping[str, int]
    sites: tuple[Site, ...]
    tokens: int
    model: str = ""
    fingerprint: str = ""

    @cached_property
    def num_choices(self) -> IntArray:
        """`[G]`: how many candidates each group has."""
        return np.array([len(group.candidates) for group in self.groups], dtype=np.int64)

    @cached_property
    def size(self) -> int:
        """How many different plans the space holds."""
        return math.prod(len(group.candidates) for group in self.groups)

    @cached_property
    def uniform(self) -> dict[str, Choices]:
        """The uniform plans by format; see `uniform_choices`."""
        return uniform_choices(self)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of groups, candidates and fixed sites: what a stored study was made for."""
        parts = [f"{g.name}|{','.join(g.sites)}|{texts_of(g.candidates)}" for g in self.groups]
        parts += [f"{name}={fmt}" for name, fmt in sorted(self.fixed.items())]
        return hashlib.sha256("\n".join([*parts, self.fingerprint]).encode()).hexdigest()

    @cached_property
    def average_damage(self) -> FloatArray:
        """`[G, C]`: size of the group times the mean damage a value of the format in its class.

        A class is all stored groups, or all that are not.
        """
        sums: dict[tuple[bool, str], tuple[float, int]] = {}
        for group, row in zip(self.groups, self.damage, strict=True):
            for fmt, value in zip(group.candidates, row, strict=False):
                if np.isfinite(value):
                    key = (group.is_stored, str(fmt))
                    total, values = sums.get(key, (0.0, 0))
                    sums[key] = (total + float(value), values + group.values)
        table = np.zeros_like(self.damage)
        for index, group in enumerate(self.groups):
            for column, fmt in enumerate(group.candidates):
                total, values = sums.get((group.is_stored, str(fmt)), (0.0, 1))
                table[index, column] = group.values * total / values
        return table

    def bits(self, resource: str, choices: Choices) -> int:
        """Bits that a plan spends of `resource`, fixed sites included."""
        table = self.costs[resource]
        return (
            int(table[np.arange(len(choices)), list(choices)].sum()) + self.fixed_costs[resource]
        )

    def least_bits(self, resource: str) -> int:
        """Bits that the cheapest plan spends of `resource`, fixed sites included."""
        return int(self.costs[resource].min(axis=1).sum()) + self.fixed_costs[resource]

    def mean_bits(self, resource: str, choices: Choices) -> float:
        """Bits a value that a plan spends of `resource`; 0 when the model has none of it."""
        return self.bits(resource, choices) / max(1, self.values[resource])

    def measures(self, choices: Choices) -> dict[str, float]:
        """Every measure of cost -> the plan's, from the tables of bits alone.

        The numbers of `cost`, which asks every site's format again: with 1,000 sites that takes
        tens of milliseconds a plan.
        """
        spent = {resource: self.bits(resource, choices) for resource in RESOURCES}
        return {
            name: float(
                measure_value(
                    name, spent[resource_of(name)], self.values[resource_of(name)], self.tokens
                )
            )
            for name in COST_MEASURES
        }

    def cost(self, choices: Choices) -> Cost:
        """What a plan costs, in every measure, and without what lies outside of the blocks."""
        return cost(self.plan(choices), self.sites, self.tokens)

    def predicted_damage(self, choices: Choices) -> float:
        """Nats per token under the additive model: the sum of the groups' own damages."""
        return float(self.damage[np.arange(len(choices)), list(choices)].sum())

    def plan(self, choices: Choices) -> Plan:
        """The plan that gives every group its chosen format, fixed sites included."""
        formats = dict(self.fixed)
        for group, choice in zip(self.groups, choices, strict=True):
            formats |= dict.fromkeys(group.sites, group.candidates[choice])
        return Plan(formats=formats, model=self.model, fingerprint=self.fingerprint)


def allowed_bits(space: Space, measure: str, bound: float) -> int:
    """The most bits of its resource that a plan may spend under a budget on a cost measure.

    Args:
        space: What is searched.
        measure: A key of `mpq.cost.COST_MEASURES`.
        bound: The budget in the measure's unit: an upper bound, for `memory_density` a lower one.

    Raises:
        BudgetError: The cheapest plan of the space costs more.
    """
    resource = resource_of(measure)
    allowed = bit_limit(measure, bound, space.sites, space.tokens)
    least = space.least_bits(resource)
    if least > allowed:
        raise BudgetError(
            f"budget {measure} = {bound:g} allows {allowed} bits, but the cheapest plan of the "
            f"space needs {least} ({least / max(1, space.values[resource]):.4g} bits a value); "
            "loosen the budget or add narrower formats"
        )
    return allowed


def uniform_choices(space: Space) -> dict[str, Choices]:
    """Format text -> the plan that gives every group that format, narrowest format first.

    A group that may not have it takes its narrowest candidate that is no narrower, or else its
    widest. Plans that come out equal are listed once, under the format that most groups take.
    """
    formats = {fmt: None for group in space.groups for fmt in group.candidates}
    found: dict[Choices, tuple[int, str]] = {}
    for fmt in sorted(formats, key=by_bits):
        choices = tuple(_nearest(group, fmt) for group in space.groups)
        takers = sum(fmt in group.candidates for group in space.groups)
        if choices not in found or found[choices][0] < takers:
            found[choices] = (takers, str(fmt))
    return {text: choices for choices, (_, text) in found.items()}


def _nearest(group: Group, fmt: Format) -> int:
    if fmt in group.candidates:
        return group.candidates.index(fmt)
    wider = (other.bits_per_value >= fmt.bits_per_value for other in group.candidates)
    return next(
        (index for index, is_wider in enumerate(wider) if is_wider), len(group.candidates) - 1
    )


def texts_of(formats: Sequence[Format]) -> str:
    """The formats in one line."""
    return ",".join(str(fmt) for fmt in formats)


def by_bits(fmt: Format) -> tuple[float, str]:
    """What candidates are sorted by."""
    return fmt.bits_per_value, str(fmt)
