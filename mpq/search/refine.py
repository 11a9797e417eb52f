"""Refinement: exchanges of bits between groups, at no greater cost, judged window by window.

A search works in lineages, one at the cost of each uniform plan: it starts from the best plan
found there, and goes on from a child only when a paired test over the windows says that the
child is better. What was measured so far corrects the profile's damages before exchanges are
ranked by them. All of it is a function of the finished trials, so a resumed search goes on as
if it had never stopped.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpq.search.correction import corrected_damage
from mpq.search.exchange import exchanges
from mpq.search.front import TrialRecord, best_record
from mpq.search.guided import optimum
from mpq.search.objective import Objective
from mpq.search.seeds import bits_of, uniform_within, within
from mpq.search.space import Choices, Space

SIGNIFICANCE = 0.05
"""Largest one-sided p-value of the paired test with which a child replaces its parent."""

AT_BUDGET = "budget"
"""Anchor of the lineage that only budgets bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The plans at the cost of one uniform plan.

    Attributes:
        anchor: Name of the uniform plan, or "budget" where only budgets bound the search.
        limits: Resource -> the most bits that its plans spend.
        best: The plan that the refinement stands at.
        children: How many exchanges were tried from here.
    """

    anchor: str
    limits: Mapping[str, int]
    best: TrialRecord
    children: int


def lineages(
    space: Space,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    *,
    quality: Objective,
    compared: Sequence[str],
    limits: Mapping[str, int],
) -> list[Lineage]:
    """Where the refinement stands, narrowest uniform plan first.

    With budgets, and no cost among the objectives or no uniform plan that keeps them, there is
    one lineage, at the budgets.
    """
    uniform = uniform_within(space, limits)
    is_costed = any(objective.source == "cost" for objective in objectives)
    if limits and not (is_costed and uniform):
        bounds = {AT_BUDGET: dict(limits)}
    else:
        bounds = {
            name: {**limits, **bits_of(space, choices, compared)}
            for name, choices in uniform.items()
        }
    found = []
    for anchor, bound in bounds.items():
        inside = [record for record in records if within(space, record.choices, bound)]
        children = [record for record in inside if record.source == "refine"]
        own = [record for record in children if record.anchor == anchor]
        start = [record for record in inside if record.source != "refine"]
        best = best_record(start, quality, objectives)
        if best is None:
            continue
        for child in sorted(own, key=lambda record: record.number):
            if is_better(child, best, quality, objectives):
                best = child
        found.append(Lineage(anchor=anchor, limits=bound, best=best, children=len(own)))
    return found


def is_better(
    child: TrialRecord,
    parent: TrialRecord,
    quality: Objective,
    objectives: Sequence[Objective],
) -> bool:
    """True when a child beats its parent by its value and by a paired test over the windows.

    The test is Student's paired t-test, one-sided (Student, "The Probable Error of a Mean",
    1908): the objective is the windows' mean. Where it has no value for each window, the value
    alone decides.
    """
    index = objectives.index(quality)
    if not child.is_candidate or not quality.is_better(child.values[index], parent.values[index]):
        return False
    if child.windows is None or parent.windows is None:
        return True
    gain = parent.windows - child.windows
    if quality.direction == "maximize":
        gain = -gain
    if len(gain) < 2 or not np.ptp(gain):
        return bool(gain.mean() > 0)
    from scipy.stats import t

    error = gain.std(ddof=1) / np.sqrt(len(gain))
    return bool(t.sf(gain.mean() / error, len(gain) - 1) < SIGNIFICANCE)


def propose(
    space: Space,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    *,
    quality: Objective,
    compared: Sequence[str],
    limits: Mapping[str, int],
) -> tuple[Lineage, Choices] | None:
    """The next plan to try, and the lineage it belongs to; None when nothing is left.

    Lineages take turns, the one with the fewest children first. The first child of a lineage
    is the additive optimum under the corrected damages, the others are exchanges.
    """
    tried = {record.choices for record in records}
    standing: dict[Choices, Lineage] = {}
    for lineage in lineages(
        space, records, objectives, quality=quality, compared=compared, limits=limits
    ):
        standing.setdefault(lineage.best.choices, lineage)
    # Of equals the narrowest: a trial's number depends on what was interrupted and queued again.
    for lineage in sorted(standing.values(), key=lambda one: one.children):
        damage = space.damage
        if quality.name == "kl":  # the other measures do not start from 0
            index = objectives.index(quality)
            measured = {r.choices: r.values[index] for r in records if r.is_candidate}
            damage = corrected_damage(damage, measured, lineage.best.choices)
        first = optimum(space, damage, lineage.limits)
        nearby = exchanges(space, damage, lineage.best.choices, lineage.limits)
        for choices in itertools.chain([first], nearby):
            if choices not in tried:
                return lineage, choices
    return None
