"""The first trials: uniform plans, and the additive optimum on a ladder of budgets.

They are the baselines that a search has to beat, and what its samplers start from.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mpq.search.anchors import Anchor, bits_of
from mpq.search.guided import Knob, neutral_params, optimum
from mpq.search.space import Choices, Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """A plan to try first.

    Attributes:
        source: Which baseline it is.
        choices: The plan.
        params: What a sampler is told about it: the guided knobs nearest to it, or nothing in
            the direct space, where the choices are the parameters.
        anchor: Format of the uniform plan that this is, or name of the anchor whose optimum it
            is; else empty.
    """

    source: Literal["uniform", "allocation"]
    choices: Choices
    params: Mapping[str, float]
    anchor: str = ""


def seeds(
    space: Space,
    *,
    settings: Sequence[Knob],
    compared: Sequence[str],
    limits: Mapping[str, int],
    anchors: Sequence[Anchor],
    trials: int,
) -> list[Seed]:
    """The trials to queue before a sampler is asked, none twice.

    First the optimum under the budgets, then for each anchor its uniform plan and its optimum,
    then optima half-way between neighbouring anchors. The baselines take no more than all
    trials, the half-way points no more than half of them.

    Args:
        space: What is searched.
        settings: The knobs of the guided space; empty for the direct one.
        compared: Resources that tie an optimum to the cost of a uniform plan.
        limits: Resource -> the most bits that a budget allows.
        anchors: Where plans are compared.
        trials: How many trials the study has.
    """
    found: dict[Choices, Seed] = {}

    def add(source: Literal["uniform", "allocation"], choices: Choices, anchor: str = "") -> None:
        params = neutral_params(space, settings, bits_of(space, choices, compared))
        if "shrink" in params:
            params["shrink"] = 1.0 if source == "uniform" else 0.0
        seed = Seed(source=source, choices=choices, params=params, anchor=anchor)
        # An optimum that is a uniform plan goes by the uniform plan's name.
        if source == "uniform" or choices not in found:
            found[choices] = seed

    if limits:
        add("allocation", optimum(space, space.damage, limits))
    for anchor in anchors:
        if anchor.uniform is not None:
            add("uniform", anchor.uniform, anchor.uniform_name)
        add("allocation", anchor.allocation, anchor.name)
    baselines = list(found.values())[:trials]
    for low, high in itertools.pairwise(anchors):
        middle = {
            name: (low.limits[name] + high.limits[name]) // 2
            for name in compared
            if name in low.limits and name in high.limits
        }
        add("allocation", optimum(space, space.damage, {**limits, **middle}))
    halfway = list(found.values())[len(baselines) :]
    return baselines + halfway[: max(0, trials // 2 - len(baselines))]
