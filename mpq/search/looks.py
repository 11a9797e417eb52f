"""What was seen of the plans that are refined: each looked at once, and kept in the study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mpq.search.expansion import GroupMoves, InPlan, group_moves
from mpq.search.interrupts import Interrupts
from mpq.search.space import Choices, FloatArray, Space

if TYPE_CHECKING:
    from optuna.study import Study

IN_PLAN = "in_plan"
"""Beginning of the study's user attributes that hold what was seen of a plan."""

DIGITS = 6
"""Significant digits that are kept."""


class Looks:
    """Everything that was seen of plans, by this process and by those before it.

    A plan is looked at for the first time by whoever refines it first; the others read what was
    seen from the study.
    """

    def __init__(
        self, study: Study, space: Space, in_plan: InPlan | None, interrupts: Interrupts
    ) -> None:
        """Looks at nothing.

        Args:
            study: Where it is kept.
            space: Of the plans.
            in_plan: Who looks; None where nobody can.
            interrupts: Told while a plan is looked at, which may be cut short.
        """
        self._study = study
        self._space = space
        self._in_plan = in_plan
        self._interrupts = interrupts
        self._seen: dict[Choices, GroupMoves] = {}

    def __call__(self, choices: Choices) -> GroupMoves | None:
        """What moves of a plan's groups would do; None where nobody looks."""
        if self._in_plan is None:
            return None
        if choices not in self._seen:
            plan = self._space.plan(choices)
            key = f"{IN_PLAN} {plan.digest}"
            known = self._study.user_attrs.get(key)
            if known is None:
                with self._interrupts.allowed():
                    known = to_json(group_moves(self._space, self._in_plan(plan)))
                self._study.set_user_attr(key, known)
            self._seen[choices] = from_json(known)
        return self._seen[choices]


def to_json(moves: GroupMoves) -> dict[str, Any]:
    """Lists of numbers; null where nothing was seen."""
    return {name: _plain(getattr(moves, name)) for name in GroupMoves.__dataclass_fields__}


def from_json(known: dict[str, Any]) -> GroupMoves:
    """What `to_json` was given."""
    return GroupMoves(**{name: np.array(known[name], dtype=np.float64) for name in known})


def _plain(numbers: FloatArray) -> Any:
    if numbers.ndim > 1:
        return [_plain(row) for row in numbers]
    return [None if np.isnan(x) else float(f"{x:.{DIGITS}g}") for x in numbers]
