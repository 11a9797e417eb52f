"""What a search is told, and which of it goes together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mpq.errors import ConfigError
from mpq.search.anchors import (
    TARGET_RESOURCE,
    Anchor,
    Which,
    compared_resources,
    make_anchors,
)
from mpq.search.guided import ladder, uniform_stops
from mpq.search.objective import Objective, quality_objective
from mpq.search.space import IntArray, Space, allowed_bits, resource_of

MAX_DIRECT_GROUPS = 128
"""More variables than that, and samplers hardly move while Optuna's time a trial grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What a search is told, apart from what it searches.

    Attributes:
        mode: "guided" or "direct".
        sampler: One of `samplers.SAMPLERS`.
        trials: Trials of the study, seeds included.
        refine: Exchanges after those.
        seed: Of every random draw.
        budget: Cost measure -> bound.
        pruner: One of `samplers.PRUNERS`.
        targets: Values of weight_bits at which plans are refined and compared.
        anchors: "all", or "targets" to leave out the costs of the uniform plans.
        rungs: Shares of the windows that a trial is judged on one after the other, ascending,
            the last 1.
        timeout_seconds: After which no trial starts; None for no limit.
    """

    mode: Literal["guided", "direct"] = "guided"
    sampler: str = "tpe"
    trials: int = 60
    refine: int = 20
    seed: int = 0
    budget: Mapping[str, float] = field(default_factory=dict)
    pruner: str = "none"
    targets: tuple[float, ...] = ()
    anchors: Which = "all"
    rungs: tuple[float, ...] = (1.0,)
    timeout_seconds: float | None = None


def budget_limits(space: Space, budget: Mapping[str, float]) -> dict[str, int]:
    """Resource -> the most bits that all budgets on it allow.

    Raises:
        BudgetError: The cheapest plan of the space breaks a budget.
    """
    limits: dict[str, int] = {}
    for measure, bound in budget.items():
        resource = resource_of(measure)
        allowed = allowed_bits(space, measure, bound)
        limits[resource] = min(allowed, limits.get(resource, allowed))
    return limits


def traded_resources(objectives: Sequence[Objective]) -> list[str]:
    """The resources whose costs are objectives, each once, in their order."""
    return list(dict.fromkeys(o.resource for o in objectives if o.source == "cost"))


def anchors_of(
    space: Space, settings: SearchSettings, objectives: Sequence[Objective]
) -> tuple[Anchor, ...]:
    """The anchors of a search, narrowest first; see `make_anchors`.

    Raises:
        BudgetError: No plan of the space keeps a budget, or a target is out of reach.
    """
    limits = budget_limits(space, settings.budget)
    return make_anchors(
        space,
        objectives,
        compared=compared_resources(space, traded_resources(objectives), limits),
        limits=limits,
        targets=settings.targets,
        which=settings.anchors,
    )


def ladders_of(
    space: Space, settings: SearchSettings, anchors: Sequence[Anchor], traded: Sequence[str]
) -> dict[str, IntArray]:
    """Traded resource -> the budgets that trials aim at, from the narrowest anchor to the widest.

    Args:
        space: What is searched.
        settings: Whether uniform plans have anchors.
        anchors: Of the search.
        traded: See `traded_resources`.
    """
    limits = budget_limits(space, settings.budget)
    found = {}
    for resource in traded:
        stops = {a.limits[resource] for a in anchors if resource in a.limits}
        if settings.anchors == "all" or not stops:
            stops |= uniform_stops(space, resource)
        found[resource] = ladder(stops, limits.get(resource))
    return found


def check_space(space: Space, settings: SearchSettings, objectives: Sequence[Objective]) -> None:
    """Refuses combinations that cannot search.

    Raises:
        ConfigError: The direct space has too many groups, nothing holds a guided one back from
            the widest formats, or targets or rungs ask for objectives that are not there.
    """
    if settings.mode == "direct" and len(space.groups) > MAX_DIRECT_GROUPS:
        raise ConfigError(
            f'space.mode = "direct" takes at most {MAX_DIRECT_GROUPS} groups and this space has '
            f"{len(space.groups)}: with one variable a group, samplers hardly move in so many "
            "dimensions and Optuna's time for each trial grows with them; "
            'use space.mode = "guided"'
        )
    quality = quality_objective(objectives)
    if len(settings.rungs) > 1 and (quality is None or quality.source != "windows"):
        raise ConfigError(
            "search.rungs judges plans by the windows of the first measure that is no cost (kl, "
            f"loss, perplexity, accuracy); got {[o.name for o in objectives]}; put one of these "
            "first, or use search.rungs = [1.0]"
        )
    traded = traded_resources(objectives)
    if settings.targets and TARGET_RESOURCE not in traded:
        raise ConfigError(
            "search.targets are values of weight_bits, as --at's are, which must be among "
            f"search.objectives; got {[o.name for o in objectives]}; for one bound "
            "use [search.budget]"
        )
    if settings.mode == "guided" and not (settings.budget or traded):
        raise ConfigError(
            "a guided search needs a cost to trade: without a cost among search.objectives "
            f"({[o.name for o in objectives]}) or a [search.budget] every trial would be the plan "
            "of the widest formats; add one"
        )
