"""The profile's damages, corrected by what each group costs within one plan.

A profile says what a group costs alone. Around a plan that was looked at, the group's own number
there replaces it: what is won by a wider format is scaled by their ratio, and what is lost by a
narrower one is scaled up with caution, since errors that grow meet each other and the expansion
says nothing about them. Of the narrower formats, the next is always in its reach, and others are
where they do not do much more damage.
"""

from collections.abc import Callable, Mapping

import numpy as np

from mpq.plans.plan import Plan
from mpq.search.space import Choices, FloatArray, Space

InPlan = Callable[[Plan], Mapping[str, float]]
"""Looks at a plan: site name -> nats per token that the plan would lose by giving the site no
format. Sites without such a number are left out."""

CAUTIONS = (2.0, 4.0, 1.0, 8.0)
"""Factors on what narrower formats lose, tried one after the other: the larger, the shorter the
step. Where errors add up, 1 is right; where all of them point the same way, 2."""

PRIOR = 0.2
"""Weight of "this group is like the others", in the mean damage of a group: the number of a group
that does next to none within the plan is noise."""

SMALLEST_RATIO, LARGEST_RATIO = 0.3, 10.0
"""Bounds of what a group costs within a plan over what it costs alone."""

REACH = 6.0
"""A format narrower by more than one candidate may do so many times the damage of the plan's: a
bit less does four times."""


def group_damage(space: Space, by_site: Mapping[str, float]) -> FloatArray:
    """`[G]`: a group's sites summed; NaN where one of them has no number."""
    return np.array(
        [sum(by_site.get(site, np.nan) for site in group.sites) for group in space.groups]
    )


def damage_around(
    damage: FloatArray, plan: Choices, in_plan: FloatArray, caution: float
) -> FloatArray:
    """`[G, C]`: the change of damage when one group of a plan moves to another choice.

    Args:
        damage: `[G, C]` of the profile; inf where a choice is forbidden.
        plan: What was looked at.
        in_plan: `[G]`, what its choices cost within it; NaN where that is not known.
        caution: See `CAUTIONS`.

    Returns:
        0 for the plan's own choices, negative for choices that do less damage; inf where a
        choice is forbidden or out of reach.
    """
    own = damage[np.arange(len(damage)), list(plan)]
    ratio = _ratios(own, in_plan)[:, None]
    change = damage - own[:, None]
    scaled = np.where(change <= 0, ratio, caution * np.maximum(ratio, 1.0)) * change
    steps_down = np.array(plan)[:, None] - np.arange(damage.shape[1])
    is_far = (own[:, None] > 0) & (damage > REACH * own[:, None]) & (steps_down > 1)
    return np.where(is_far, np.inf, scaled)


def _ratios(own: FloatArray, in_plan: FloatArray) -> FloatArray:
    """`[G]`: what each group costs within the plan over what it costs alone; 1 where unknown.

    Groups are shrunk towards all of them together, those with little damage most.
    """
    is_known = np.isfinite(in_plan) & np.isfinite(own)
    prior = PRIOR * own[is_known].mean() if is_known.any() else 0.0
    if not prior > 0:
        return np.ones_like(own)
    together = in_plan[is_known].sum() / own[is_known].sum()
    ratio = (in_plan + prior * together) / (own + prior)
    return np.where(is_known, np.clip(ratio, SMALLEST_RATIO, LARGEST_RATIO), 1.0)
