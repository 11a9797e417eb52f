"""What sites cost within the plans that are refined, looked at once and kept in the study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpq.search.expansion import InPlan, group_damage
from mpq.search.interrupts import Interrupts
from mpq.search.space import Choices, FloatArray, Space

if TYPE_CHECKING:
    from optuna.study import Study

IN_PLAN = "in_plan"
"""Beginning of the study's user attributes that hold what sites cost within a plan."""


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
        self._seen: dict[Choices, FloatArray] = {}

    def __call__(self, choices: Choices) -> FloatArray | None:
        """`[G]`: what each group costs within a plan in nats a token; None where nobody looks.

        NaN for groups of which that is not known.
        """
        if self._in_plan is None:
            return None
        if choices not in self._seen:
            plan = self._space.plan(choices)
            key = f"{IN_PLAN} {plan.digest}"
            known = self._study.user_attrs.get(key)
            if known is None:
                with self._interrupts.allowed():
                    known = dict(self._in_plan(plan))
                self._study.set_user_attr(key, known)
            self._seen[choices] = group_damage(self._space, known)
        return self._seen[choices]
