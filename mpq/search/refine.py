"""Refinement: exchanges of bits between groups, at no greater cost, judged window by window.

A search works in lineages, one at each anchor: it starts from the best plan found there, and
goes on from a child only when a paired test over the windows says that the child is better. The
profile's damages are corrected before children are ranked by them: by what moves would do within
the best plan, where somebody can look at it, and by what was measured so far. All of it is a
function of the finished trials, so a resumed search goes on as if it had never stopped.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from mpq.search.anchors import Anchor, within
from mpq.search.correction import corrected_damage
from mpq.search.exchange import exchanges
from mpq.search.expansion import CAUTIONS, GroupMoves, damage_around
from mpq.search.front import TrialRecord, best_record
from mpq.search.guided import optimum
from mpq.search.objective import Objective
from mpq.search.paired import SIGNIFICANCE, p_better
from mpq.search.space import Choices, FloatArray, Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The plans at one anchor.

    Attributes:
        anchor: Where, and what its plans may spend.
        best: The plan that the refinement stands at.
        children: How many exchanges were tried at the anchor.
        tried: How many of them from `best`.
    """

    anchor: Anchor
    best: TrialRecord
    children: int
    tried: int


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
    cheaper: Anchor | None = None
    for anchor in anchors:
        inside = [record for record in records if within(space, record.choices, anchor.limits)]
        others = [record for record in inside if record.source != "refine"]
        own = [r for r in inside if r.source == "refine" and r.anchor == anchor.name]
        num_rivals = sum(
            cheaper is None or not within(space, record.choices, cheaper.limits)
            for record in others
        )
        cheaper = anchor
        best = _start(anchor, others, num_rivals, quality, objectives)
        if best is None:
            continue
        for child in sorted(own, key=lambda record: record.number):
            if is_better(child, best, quality, objectives):
                best = child
        tried = sum(record.parent == best.number for record in own)
        found.append(Lineage(anchor=anchor, best=best, children=len(own), tried=tried))
    return found


def _start(
    anchor: Anchor,
    records: Sequence[TrialRecord],
    num_rivals: int,
    quality: Objective,
    objectives: Sequence[Objective],
) -> TrialRecord | None:
    """The plan that a lineage starts from: the better baseline, or a trial that beats it.

    The best of many trials looks better than it is. So the one with the best mean replaces the
    baseline only when the paired test says so at a p-value divided by the number of trials that
    might have been it (Bonferroni; Dunn, "Multiple Comparisons Among Means", 1961).
    """
    baselines = [r for r in records if r.choices in (anchor.allocation, anchor.uniform)]
    best = best_record(records, quality, objectives)
    standing = best_record(baselines, quality, objectives)
    if best is None or standing is None:
        return best
    significance = SIGNIFICANCE / max(1, num_rivals)
    is_won = is_better(best, standing, quality, objectives, significance=significance)
    return best if is_won else standing


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
    look: Callable[[Choices], GroupMoves | None] = lambda _: None,
    taken: Collection[Choices] = (),
) -> tuple[Lineage, Choices] | None:
    """The next plan to try, and the lineage it belongs to; None when nothing is left.

    Lineages take turns, the one with the fewest children first, so that each gets its share. The
    first children of a plan are additive optima under the corrected damages, the others are
    exchanges.

    Args:
        space: What is searched.
        records: Finished trials.
        objectives: Of the study.
        quality: The objective that children are judged by.
        anchors: Where.
        look: What moves would do within a plan, or None. Asked for the best plan of the lineage
            whose turn it is.
        taken: Plans that other workers are about to measure.
    """
    tried = {*taken, *(record.choices for record in records)}
    found = lineages(space, records, objectives, quality=quality, anchors=anchors)
    # Of equals the narrowest: a trial's number depends on what was interrupted and queued again.
    for lineage in sorted(found, key=lambda one: one.children):
        best = lineage.best.choices
        correct = partial(_corrected, space, records, objectives, quality, best)
        # The other measures do not start from 0.
        moves = look(best) if quality.name == "kl" else None
        for choices in _children(space, lineage, correct, moves):
            if choices not in tried:
                return lineage, choices
    return None


def _corrected(
    space: Space,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    quality: Objective,
    near: Choices,
) -> FloatArray:
    """`[G, C]`: the profile's damages, corrected by the trials around a plan."""
    if quality.name != "kl":
        return space.damage
    index = objectives.index(quality)
    # All on the first rung's windows: plans that went no further count as well.
    measured = {r.choices: r.first_values[index] for r in records if r.is_comparable}
    return corrected_damage(space.damage, measured, near)


def _children(
    space: Space,
    lineage: Lineage,
    correct: Callable[[], FloatArray],
    moves: GroupMoves | None,
) -> Iterator[Choices]:
    """Plans to try from the best of a lineage, the most promising first; some come twice.

    What was seen of the plan and what was measured around it err in different ways, so they take
    turns.

    Args:
        space: What is searched.
        lineage: Whose best plan and limits.
        correct: Makes `[G, C]`, damages corrected by what was measured.
        moves: What was seen of the best plan; None where nobody looked.
    """
    best, limits = lineage.best.choices, lineage.anchor.limits
    if moves is None:
        damage = correct()
        yield optimum(space, damage, limits)
        yield from exchanges(space, damage, best, limits)
        return
    if lineage.tried % 2:
        yield optimum(space, correct(), limits)
    for caution in CAUTIONS:
        yield _optimum_around(space, best, moves, caution, tuple(limits.items()))
    yield from exchanges(
        space, damage_around(space.damage, best, moves, CAUTIONS[0]), best, limits
    )


@lru_cache(maxsize=256)
def _optimum_around(
    space: Space,
    best: Choices,
    moves: GroupMoves,
    caution: float,
    limits: tuple[tuple[str, int], ...],
) -> Choices:
    """The optimum under the damages around a plan; asked for again with every child of it."""
    return optimum(space, damage_around(space.damage, best, moves, caution), dict(limits))
