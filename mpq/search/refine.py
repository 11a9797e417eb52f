"""Refinement: exchanges of bits between groups, at no greater cost, judged window by window.

A search works in lineages, one at each anchor: it starts from the best plan found there, and
goes on from a child only when a paired test over the windows says that the child is better. What
was measured so far corrects the profile's damages before exchanges are ranked by them. All of it
is a function of the finished trials, so a resumed search goes on as if it had never stopped.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mpq.search.anchors import Anchor, within
from mpq.search.correction import corrected_damage
from mpq.search.exchange import exchanges
from mpq.search.front import TrialRecord, best_record
from mpq.search.guided import optimum
from mpq.search.objective import Objective
from mpq.search.paired import SIGNIFICANCE, p_better
from mpq.search.space import Choices, Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The plans at one anchor.

    Attributes:
        anchor: Where, and what its plans may spend.
        best: The plan that the refinement stands at.
        children: How many exchanges were tried from here.
    """

    anchor: Anchor
    best: TrialRecord
    children: int


def lineages(
    space: Space,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    *,
    quality: Objective,
    anchors: Sequence[Anchor],
) -> list[Lineage]:
    """Where the refinement stands at each anchor that a finished trial keeps, in their order."""
    found = []
    for anchor in anchors:
        inside = [record for record in records if within(space, record.choices, anchor.limits)]
        children = [record for record in inside if record.source == "refine"]
        own = [record for record in children if record.anchor == anchor.name]
        start = [record for record in inside if record.source != "refine"]
        best = best_record(start, quality, objectives)
        if best is None:
            continue
        for child in sorted(own, key=lambda record: record.number):
            if is_better(child, best, quality, objectives):
                best = child
        found.append(Lineage(anchor=anchor, best=best, children=len(own)))
    return found


def is_better(
    child: TrialRecord,
    parent: TrialRecord,
    quality: Objective,
    objectives: Sequence[Objective],
    *,
    significance: float = SIGNIFICANCE,
) -> bool:
    """True when a child beats its parent by its value and by a paired test over the windows.

    Where the objective has no value for each window, the value alone decides.
    """
    index = objectives.index(quality)
    if not child.is_candidate or not quality.is_better(child.values[index], parent.values[index]):
        return False
    if child.windows is None or parent.windows is None:
        return True
    return p_better(child.windows, parent.windows, quality) < significance


def propose(
    space: Space,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    *,
    quality: Objective,
    anchors: Sequence[Anchor],
) -> tuple[Lineage, Choices] | None:
    """The next plan to try, and the lineage it belongs to; None when nothing is left.

    Lineages take turns, the one with the fewest children first, so that each gets its share. The
    first child of a lineage is the additive optimum under the corrected damages, the others are
    exchanges.
    """
    tried = {record.choices for record in records}
    found = lineages(space, records, objectives, quality=quality, anchors=anchors)
    # Of equals the narrowest: a trial's number depends on what was interrupted and queued again.
    for lineage in sorted(found, key=lambda one: one.children):
        damage = space.damage
        if quality.name == "kl":  # the other measures do not start from 0
            index = objectives.index(quality)
            # All on the first rung's windows: plans that went no further count as well.
            measured = {r.choices: r.first_values[index] for r in records if r.is_comparable}
            damage = corrected_damage(damage, measured, lineage.best.choices)
        first = optimum(space, damage, lineage.anchor.limits)
        nearby = exchanges(space, damage, lineage.best.choices, lineage.anchor.limits)
        for choices in itertools.chain([first], nearby):
            if choices not in tried:
                return lineage, choices
    return None
