"""What a search is told, and which of it goes together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mpq.errors import ConfigError
from mpq.search.objective import Objective
from mpq.search.space import Space, allowed_bits, resource_of

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
        timeout_seconds: After which no trial starts; None for no limit.
    """

    mode: Literal["guided", "direct"] = "guided"
    sampler: str = "tpe"
    trials: int = 60
    refine: int = 20
    seed: int = 0
    budget: Mapping[str, float] = field(default_factory=dict)
    pruner: str = "none"
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


def check_space(space: Space, settings: SearchSettings, objectives: Sequence[Objective]) -> None:
    """Refuses combinations that cannot search.

    Raises:
        ConfigError: The direct space has too many groups, or nothing holds a guided one back
            from the widest formats.
    """
    if settings.mode == "direct" and len(space.groups) > MAX_DIRECT_GROUPS:
        raise ConfigError(
            f'space.mode = "direct" takes at most {MAX_DIRECT_GROUPS} groups and this space has '
            f"{len(space.groups)}: with one variable a group, samplers hardly move in so many "
            "dimensions and Optuna's time for each trial grows with them; "
            'use space.mode = "guided"'
        )
    is_costed = settings.budget or any(objective.source == "cost" for objective in objectives)
    if settings.mode == "guided" and not is_costed:
        raise ConfigError(
            "a guided search needs a cost to trade: without a cost among search.objectives "
            f"({[o.name for o in objectives]}) or a [search.budget] every trial would be the plan "
            "of the widest formats; add one"
        )
