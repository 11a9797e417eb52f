"""The divergence around a plan: the slopes of moves that were looked at, and the profile.

A profile says what a group costs alone. Within a plan that was looked at, a move of one group to
another choice changes the divergence by its slope, to first order, and by a curvature that the
look does not show. The profile does: what a format costs alone is nearly all curvature, the same
but for a factor that says how much more errors weigh where there are others. The factor is read
off the looks themselves: towards the whole tensors, curvature takes back half of the slopes.

Taylor's difference of slope and curvature is one estimate of a move, and the scaled profile is
another; they err in different ways, and their mean is taken (the experiment
001_mixed_beats_uniform measures how near it comes, part `looks`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpq.plans.move import UNTOUCHED, Moves
from mpq.plans.plan import Plan
from mpq.search.space import Choices, FloatArray, Space

InPlan = Callable[[Plan], Moves]
"""Looks at a plan. Sites that cannot be seen there are left out."""

CAUTIONS = (2.0, 4.0, 1.0, 8.0, 3.0, 1.5, 6.0)
"""Factors on what moves lose, tried one after the other: the larger, the shorter the step. Where
the errors of several moves add up, 1 is right; where all of them point the same way, 2."""

SMALLEST_FACTOR, LARGEST_FACTOR = 0.3, 10.0
"""Bounds of how much more errors weigh in a plan than alone."""

REACH = 6.0
"""A format narrower by more than one candidate may do so many times the damage of the plan's: a
bit less does four times, and an expansion does not reach far."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupMoves:
    """What a look says of a plan's groups; NaN where it says nothing.

    Attributes:
        slope: `[G, C]`, nats per judged position: of giving a group another choice.
        apart: `[G, C]`: see `Move`, the mean of a group's sites.
        whole: `[G]`, the slope of giving a group no format.
    """

    slope: FloatArray
    apart: FloatArray
    whole: FloatArray


def group_moves(space: Space, by_site: Moves) -> GroupMoves:
    """The moves of whole groups: slopes summed over a group's sites."""
    shape = (len(space.groups), max(len(group.candidates) for group in space.groups))
    slope, apart = np.full(shape, np.nan), np.full(shape, np.nan)
    whole = np.full(shape[0], np.nan)
    for index, group in enumerate(space.groups):
        if any(site not in by_site for site in group.sites):
            continue
        sites = [by_site[site] for site in group.sites]
        whole[index] = sum(moves[UNTOUCHED].slope for moves in sites)
        for choice, fmt in enumerate(group.candidates):
            found = [moves[str(fmt)] for moves in sites]
            slope[index, choice] = sum(move.slope for move in found)
            apart[index, choice] = np.mean([move.apart for move in found])
    return GroupMoves(slope=slope, apart=apart, whole=whole)


def damage_around(
    damage: FloatArray, plan: Choices, moves: GroupMoves, caution: float
) -> FloatArray:
    """`[G, C]`: the change of damage when one group of a plan moves to another choice.

    Args:
        damage: `[G, C]` of the profile; inf where a choice is forbidden.
        plan: What was looked at.
        moves: What was seen; groups without it keep the profile's damages, scaled like the rest.
        caution: See `CAUTIONS`.

    Returns:
        0 for the plan's own choices; inf where a choice is forbidden or out of reach.
    """
    groups = np.arange(len(damage))
    own = damage[groups, list(plan)][:, None]
    factor = _factor(own[:, 0], moves.whole)
    scaled = factor * (damage - own)
    taylor = moves.slope + factor * moves.apart * (damage + own)
    change = np.where(np.isnan(moves.slope), scaled, (taylor + scaled) / 2)
    change[groups, list(plan)] = 0.0
    steps_down = np.array(plan)[:, None] - np.arange(damage.shape[1])
    is_far = (own > 0) & (damage > REACH * own) & (steps_down > 1)
    is_out = is_far | ~np.isfinite(damage)
    return np.where(is_out, np.inf, np.where(change > 0, caution * change, change))


def _factor(own: FloatArray, whole: FloatArray) -> float:
    """How much more the groups' errors weigh within the plan than alone; 1 where nobody looked."""
    is_known = np.isfinite(whole) & np.isfinite(own)
    alone = own[is_known].sum()
    if not alone > 0:
        return 1.0
    return float(np.clip(-0.5 * whole[is_known].sum() / alone, SMALLEST_FACTOR, LARGEST_FACTOR))
