"""Objectives: named measures, each minimised or maximised in its own unit, and their values."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from mpq.cost import COST_MEASURES
from mpq.errors import ConfigError
from mpq.plans.plan import Plan
from mpq.search.space import FloatArray, resource_of

Direction = Literal["minimize", "maximize"]

_MEASURED: Mapping[str, tuple[str, Direction, str]] = {
    "kl": ("kl", "minimize", "nats a token"),
    "loss": ("loss", "minimize", "nats a token"),
    "perplexity": ("loss", "minimize", ""),
    "accuracy": ("accuracy", "maximize", "share"),
}
"""Measure -> (what of it is measured in each window, direction, unit)."""


class Evaluate(Protocol):
    """What the search asks for measurements.

    Attributes:
        num_windows: Windows of tokens (or examples) that there are.
        batch_size: Windows that are measured at once; ranges of whole batches waste nothing.
    """

    num_windows: int
    batch_size: int

    @property
    def forward_seconds(self) -> float:
        """Seconds spent in the model and the measures so far."""
        ...

    def __call__(
        self, plan: Plan, first: int = 0, last: int | None = None
    ) -> Mapping[str, FloatArray]:
        """Measure -> its value in each of the windows `first` to `last`, under the plan."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One number that a study makes small or large.

    Attributes:
        name: The measure, or `module:function`, with `maximize:` before it where more is better.
        direction: Which way is better.
        unit: For tables; may be empty.
        source: "cost" comes from shapes alone, "windows" from the evaluation of each window,
            "function" from a function of the user's.
        measured: For "windows": which of the evaluation's measures it is made of.
    """

    name: str
    direction: Direction
    unit: str = ""
    source: Literal["cost", "windows", "function"]
    measured: str = ""

    @property
    def function(self) -> str:
        """`module:function` without the prefix that says which way is better."""
        return self.name.removeprefix("maximize:").removeprefix("minimize:")

    @property
    def resource(self) -> str:
        """The resource behind an objective that is a cost."""
        return resource_of(self.name)

    def reduce(self, windows: FloatArray) -> float:
        """The objective's value from its measure in each window; NaN counts as worst."""
        mean = float(np.mean(windows))
        if self.name == "perplexity":
            mean = math.exp(mean) if mean < 700 else math.inf
        if math.isnan(mean):
            return math.inf if self.direction == "minimize" else -math.inf
        return mean

    def is_better(self, value: float, other: float) -> bool:
        """True when `value` is strictly better than `other`."""
        return value < other if self.direction == "minimize" else value > other


def make_objectives(names: Sequence[str]) -> tuple[Objective, ...]:
    """The objectives behind names of measures and `module:function`s.

    Args:
        names: In the order of the study. A function of the user's is minimised unless its name
            starts with `maximize:`.

    Raises:
        ConfigError: A name is no measure and no `module:function`, comes twice, or none is given.
    """
    found, faults = [], []
    for name in names:
        if name in COST_MEASURES:
            measure = COST_MEASURES[name]
            found.append(
                Objective(name=name, direction=measure.direction, unit=measure.unit, source="cost")
            )
        elif name in _MEASURED:
            measured, direction, unit = _MEASURED[name]
            found.append(
                Objective(
                    name=name, direction=direction, unit=unit, source="windows", measured=measured
                )
            )
        elif ":" in name:
            direction = "maximize" if name.startswith("maximize:") else "minimize"
            found.append(Objective(name=name, direction=direction, source="function"))
        else:
            faults.append(name)
    if faults or not names or len(set(names)) < len(names):
        raise ConfigError(
            "search.objectives takes one or more different names out of "
            f"{', '.join([*_MEASURED, *COST_MEASURES])}, or module:function; got {list(names)}"
        )
    return tuple(found)


def quality_objective(objectives: Sequence[Objective]) -> Objective | None:
    """The first objective that is no cost: what plans of equal cost are compared by."""
    return next((o for o in objectives if o.source != "cost"), None)


def objective_values(
    objectives: Sequence[Objective],
    costs: Mapping[str, float],
    windows: Mapping[str, FloatArray],
    functions: Mapping[str, float],
) -> tuple[float, ...]:
    """One value an objective, from a plan's costs, its windows, and the user's functions.

    Raises:
        ConfigError: The evaluation does not measure what an objective is made of.
    """
    missing = [o.name for o in objectives if o.source == "windows" and o.measured not in windows]
    if missing:
        raise ConfigError(
            f"objectives {missing} are not measured for this task; measured are {sorted(windows)}"
        )
    values = []
    for objective in objectives:
        if objective.source == "cost":
            values.append(costs[objective.name])
        elif objective.source == "windows":
            values.append(objective.reduce(windows[objective.measured]))
        else:
            values.append(_or_worst(functions[objective.name], objective))
    return tuple(values)


def _or_worst(value: float, objective: Objective) -> float:
    if not math.isnan(value):
        return value
    return math.inf if objective.direction == "minimize" else -math.inf


UserFunction = Callable[[Plan], float]
"""A user's `module:function`, already bound to the model under the plan."""
