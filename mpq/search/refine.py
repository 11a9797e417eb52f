"""Refinement: exchanges of bits between groups, at no greater cost, judged window by window.

A search works in lineages, one at the cost of each uniform plan: it starts from the best plan
found there, and goes on from a child only when a paired test over the windows says that the
child is better. What was measured so far corrects the profile's damages before exchanges are
ranked by them. All of it is a function of the finished trials, so a resumed search goes on as
if it had never stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpq.search.front import TrialRecord, best_record, losses
from mpq.search.guided import optimum
from mpq.search.objective import Objective
from mpq.search.seeds import bits_of, uniform_within, within
from mpq.search.space import Choices, FloatArray, Space

SIGNIFICANCE = 0.05
"""Largest one-sided p-value of the paired test with which a child replaces its parent."""

_PRIOR = 0.1
_NEARBY = 0.7
_MAX_DOWNS = 3


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

    With budgets and no cost among the objectives there is one lineage, at the budgets.
    """
    if limits and all(objective.source != "cost" for objective in objectives):
        bounds = {"budget": dict(limits)}
    else:
        uniform = uniform_within(space, limits)
        bounds = {
            name: {**limits, **bits_of(space, choices, compared)}
            for name, choices in uniform.items()
        }
    found: dict[Choices, Lineage] = {}
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
        lineage = Lineage(anchor=anchor, limits=bound, best=best, children=len(own))
        found.setdefault(best.choices, lineage)
    return list(found.values())


def is_better(
    child: TrialRecord,
    parent: TrialRecord,
    quality: Objective,
    objectives: Sequence[Objective],
) -> bool:
    """True when a child beats its parent by its value and by a paired test over the windows.

    The test is Wilcoxon's signed-rank test (Wilcoxon 1945), one-sided; where the objective has no
    value for each window, the value alone decides.
    """
    index = objectives.index(quality)
    if not child.is_candidate or not quality.is_better(child.values[index], parent.values[index]):
        return False
    if child.windows is None or parent.windows is None:
        return True
    gain = parent.windows - child.windows
    if quality.direction == "maximize":
        gain = -gain
    if not np.any(gain):
        return False
    from scipy.stats import wilcoxon

    return bool(wilcoxon(gain, alternative="greater").pvalue < SIGNIFICANCE)


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
    standing = lineages(
        space, records, objectives, quality=quality, compared=compared, limits=limits
    )
    for lineage in sorted(standing, key=lambda lineage: lineage.children):
        damage = corrected_damage(space, records, lineage.best, quality, objectives)
        proposals = [optimum(space, damage, lineage.limits)]
        for choices in (*proposals, *exchanges(space, damage, lineage.best.choices, lineage)):
            if choices not in tried:
                return lineage, choices
    return None


def exchanges(
    space: Space, damage: FloatArray, start: Choices, lineage: Lineage
) -> Iterator[Choices]:
    """Plans one exchange away, least predicted damage first.

    One group goes up by one candidate; as many others as its bits ask for, at most three, go down
    by one, those that lose least a bit first; bits left over go to who gains most a bit.
    """
    rated: dict[Choices, float] = {}
    for up in range(len(start)):
        raised = _moved(space, start, up, 1)
        if raised is None:
            continue
        for first_down in (None, *range(len(start))):
            plan = _paid_for(space, damage, raised, lineage.limits, up, first_down)
            if plan is not None:
                rated.setdefault(plan, _total(damage, plan))
    yield from sorted(rated, key=lambda plan: (rated[plan], plan))


def corrected_damage(
    space: Space,
    records: Sequence[TrialRecord],
    near: TrialRecord,
    quality: Objective,
    objectives: Sequence[Objective],
) -> FloatArray:
    """The profile's damages, each group's scaled to what the finished trials showed.

    Ridge regression of the measured objective on the groups' own damages, in relative error,
    towards one common scale; trials count the more, the nearer their objective is to `near`'s.
    Objectives that do not grow from 0 with damage (accuracy, functions) leave them as they are.
    """
    used = [record for record in records if record.is_candidate]
    index = objectives.index(quality)
    y = np.array([losses(record.values, objectives)[index] for record in used])
    own = np.array(
        [[row[c] for row, c in zip(space.damage, r.choices, strict=True)] for r in used]
    )
    target = near.values[index]
    if quality.name != "kl" or len(used) < 3 or target <= 0 or np.any(y <= 0):
        return space.damage
    keep = np.isfinite(own).all(axis=1)
    own, y = own[keep], y[keep]
    weight = np.exp(-0.5 * (np.log(y / target) / _NEARBY) ** 2)
    scale = float(np.median(y / np.maximum(own.sum(axis=1), 1e-30)))
    features = own * scale / y[:, None] * np.sqrt(weight)[:, None]
    residual = np.sqrt(weight) - features.sum(axis=1)
    gram = features.T @ features + _PRIOR * np.eye(len(space.groups)) * np.mean(features**2)
    factors = 1 + np.linalg.solve(gram + 1e-12 * np.eye(len(gram)), features.T @ residual)
    return np.asarray(space.damage * np.clip(factors, 0.25, 4.0)[:, None], dtype=np.float64)


def _moved(space: Space, choices: Choices, group: int, step: int) -> Choices | None:
    choice = choices[group] + step
    if not 0 <= choice < space.num_choices[group] or not np.isfinite(space.damage[group, choice]):
        return None
    return (*choices[:group], choice, *choices[group + 1 :])


def _paid_for(
    space: Space,
    damage: FloatArray,
    raised: Choices,
    limits: Mapping[str, int],
    up: int,
    first_down: int | None,
) -> Choices | None:
    """The plan after enough groups went down to pay for the one that went up, then filled."""
    plan = raised
    touched = {up}
    if first_down is not None:
        lowered = None if first_down == up else _moved(space, raised, first_down, -1)
        if lowered is None:
            return None
        plan, touched = lowered, {up, first_down}
    while not within(space, plan, limits):
        step = None
        if 1 < len(touched) <= _MAX_DOWNS:
            step = _best_step(space, damage, plan, touched, -1, None)
        if step is None:
            return None
        plan, touched = step[0], touched | {step[1]}
    while (step := _best_step(space, damage, plan, touched, 1, limits)) is not None:
        plan, touched = step[0], touched | {step[1]}
    return plan


def _best_step(
    space: Space,
    damage: FloatArray,
    plan: Choices,
    touched: set[int],
    step: int,
    limits: Mapping[str, int] | None,
) -> tuple[Choices, int] | None:
    """The untouched group whose step costs least (gains most) damage a bit, after its step."""
    best: tuple[float, int, Choices] | None = None
    for group in range(len(plan)):
        moved = None if group in touched else _moved(space, plan, group, step)
        if moved is None or (limits is not None and not within(space, moved, limits)):
            continue
        bits = sum(
            abs(int(t[group, moved[group]] - t[group, plan[group]])) for t in _tables(space)
        )
        change = float(damage[group, moved[group]] - damage[group, plan[group]])
        rate = (change / max(bits, 1), group, moved)
        if best is None or rate < best:
            best = rate
    return None if best is None else (best[2], best[1])


def _tables(space: Space) -> list[np.ndarray]:
    return [space.costs["weight_bits"], space.costs["activation_bits"]]


def _total(damage: FloatArray, choices: Choices) -> float:
    return float(damage[np.arange(len(choices)), list(choices)].sum())
