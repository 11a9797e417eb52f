"""Plans at costs that are asked for once a search is over.

The trials of a search lie where its sampler sent them, so at most costs the front's best plan is
one that spends less; the additive optimum of the profile spends all of it. So a cost that is
asked for becomes an anchor after the fact: its optimum is measured, then what the plans next to
it become at that cost, then children of whatever stands, and one replaces another only when the
paired test says so. What comes back is the optimum, or a plan that measured better on the
search's windows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mpq.errors import BudgetError
from mpq.search.anchors import Anchor, within
from mpq.search.expansion import CAUTIONS, GroupMoves, damage_around
from mpq.search.front import Source, TrialRecord
from mpq.search.guided import optimum
from mpq.search.objective import Evaluate, Objective, UserFunction, objective_values
from mpq.search.refine import lineages, propose
from mpq.search.space import Choices, Space

TRIES = 4
"""Plans that are measured at a cost, beside its optimum: the plans next to it give two."""

Look = Callable[[Choices], GroupMoves | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was found at a cost.

    Attributes:
        anchor: The cost.
        best: The plan that stands: the optimum, or what beat it in the paired test.
        measured: The plans that were measured for it, in their order. Their numbers go on where
            the study's end; no trial of the study has them.
    """

    anchor: Anchor
    best: TrialRecord
    measured: tuple[TrialRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A search that is over, as far as plans at other costs need it.

    Attributes:
        space: What was searched.
        records: Its finished trials.
        objectives: Of the study.
        quality: The objective that plans are judged by.
        anchors: Of the search: where its refined plans lie.
        evaluate: Measures a plan on the search's windows.
        look: What moves would do within a plan, or None.
        first_windows: How many of them every trial has seen: those of the first rung.
        functions: The objectives that are functions of the user's.
        tries: See `TRIES`.
    """

    space: Space
    records: Sequence[TrialRecord]
    objectives: Sequence[Objective]
    quality: Objective
    anchors: Sequence[Anchor]
    evaluate: Evaluate
    look: Look
    first_windows: int
    functions: Mapping[str, UserFunction]
    tries: int = TRIES


def ask(search: Finished, anchor: Anchor) -> Asked:
    """The best plan at an anchor, which need not be one of the search's.

    Raises:
        BudgetError: No plan that was measured there leaves a finite value.
    """
    records = list(search.records)

    def standing() -> TrialRecord:
        """The plan that stands there; its optimum is measured, so there is one."""
        found = lineages(
            search.space, records, search.objectives, quality=search.quality, anchors=[anchor]
        )
        if not found:
            raise BudgetError(
                f"at {anchor.name} the model breaks: {search.quality.name} of the additive "
                "optimum is not finite; ask for more bits"
            )
        return found[0].best

    if not any(r.choices == anchor.allocation and r.is_candidate for r in records):
        records.append(_measured(search, anchor, anchor.allocation, records, "allocation"))
    nearby = list(_nearby(search, anchor))
    for _ in range(search.tries):
        choices = _next(search, anchor, records, nearby)
        if choices is None:
            break
        best = standing().number
        records.append(_measured(search, anchor, choices, records, "refine", best))
    return Asked(anchor=anchor, best=standing(), measured=tuple(records[len(search.records) :]))


def _next(
    search: Finished, anchor: Anchor, records: Sequence[TrialRecord], nearby: Sequence[Choices]
) -> Choices | None:
    """The next plan to measure: those nearby first, then children of the one that stands."""
    tried = {record.choices for record in records}
    fresh = next((choices for choices in nearby if choices not in tried), None)
    if fresh is not None:
        return fresh
    found = propose(
        search.space,
        records,
        search.objectives,
        quality=search.quality,
        anchors=[anchor],
        look=search.look,
    )
    return None if found is None else found[1]


def _nearby(search: Finished, anchor: Anchor) -> Iterator[Choices]:
    """The refined plans next to an anchor, moved to its cost by what was seen of them."""
    if search.quality.name != "kl":
        return
    space = search.space
    refined = [
        lineage.best.choices
        for lineage in lineages(
            space,
            search.records,
            search.objectives,
            quality=search.quality,
            anchors=search.anchors,
        )
    ]
    cheaper = [plan for plan in refined if within(space, plan, anchor.limits)]
    dearer = [plan for plan in refined if plan not in cheaper]
    for plan in (*cheaper[-1:], *dearer[:1]):
        moves = search.look(plan)
        if moves is None:
            continue
        # No plan within the expansion's reach may be cheap enough.
        with suppress(BudgetError):
            damage = damage_around(space.damage, plan, moves, CAUTIONS[0])
            yield optimum(space, damage, anchor.limits)


def _measured(
    search: Finished,
    anchor: Anchor,
    choices: Choices,
    records: Sequence[TrialRecord],
    source: Source,
    parent: int | None = None,
) -> TrialRecord:
    """The record of a plan that comes after `records`, measured now on all windows."""
    plan = search.space.plan(choices)
    costs = search.space.measures(choices)
    functions = {name: float(function(plan)) for name, function in search.functions.items()}
    windows = search.evaluate(plan)
    first = {name: values[: search.first_windows] for name, values in windows.items()}
    return TrialRecord(
        number=1 + max((record.number for record in records), default=-1),
        state="complete",
        source=source,
        choices=choices,
        digest=plan.digest,
        values=objective_values(search.objectives, costs, windows, functions),
        first_rung=objective_values(search.objectives, costs, first, functions),
        costs=costs,
        windows=windows.get(search.quality.measured),
        num_judged=search.evaluate.num_windows,
        parent=parent,
        anchor=anchor.name,
    )
