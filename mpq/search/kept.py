"""Measurements that are kept in a JSON file, so that no plan is measured twice."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpq.plans.plan import Plan
from mpq.run import read_json, write_json
from mpq.search.objective import Evaluate, UserFunction
from mpq.search.space import FloatArray


class Kept:
    """Measures plans on all windows, or reads what was measured; see `objective.Evaluate`.

    The file is written after each plan. It has a part for each split, with the settings that the
    numbers depend on; numbers of other settings are not read, and make way for new ones.
    """

    def __init__(
        self, evaluate: Evaluate, path: Path, *, part: str, settings: Mapping[str, Any]
    ) -> None:
        """Reads what is there; measures nothing.

        Args:
            evaluate: Measures what is new.
            path: The file.
            part: Of the file: name of the split.
            settings: Plain values, such as the hash of the split.
        """
        self.num_windows = evaluate.num_windows
        self.batch_size = evaluate.batch_size
        self._evaluate = evaluate
        self._path = path
        self._part = part
        self._settings = dict(settings) | {"windows": evaluate.num_windows}
        self._known = self._read().get(part, {})

    @property
    def forward_seconds(self) -> float:
        """Seconds of this process spent measuring."""
        return self._evaluate.forward_seconds

    def __call__(
        self, plan: Plan, first: int = 0, last: int | None = None
    ) -> Mapping[str, FloatArray]:
        """Measure -> its value in each of the windows `first` to `last`, under the plan."""

        def measure() -> Any:
            return {
                name: [_plain(value) for value in values.tolist()]
                for name, values in self._evaluate(plan).items()
            }

        found = self._once("measures", plan, measure)
        return {name: np.array(found[name], dtype=np.float64)[first:last] for name in found}

    def function(self, name: str, function: UserFunction) -> UserFunction:
        """An objective that is a function of the user's, called once for each plan."""

        def kept(plan: Plan) -> float:
            return float(self._once(name, plan, lambda: _plain(float(function(plan)))))

        return kept

    def _once(self, what: str, plan: Plan, measure: Callable[[], Any]) -> Any:
        known = self._known.get(what, {})
        if plan.digest not in known:
            value = measure()
            everything = self._read()  # others may have written since
            part = everything.setdefault(self._part, {"settings": self._settings})
            part.setdefault(what, {})[plan.digest] = value
            write_json(self._path, everything)
            self._known = part
        return self._known[what][plan.digest]

    def _read(self) -> dict[str, Any]:
        """What the file holds, without a part of other settings."""
        found: dict[str, Any] = read_json(self._path) if self._path.exists() else {}
        if found.get(self._part, {}).get("settings") != self._settings:
            found.pop(self._part, None)
        return found


def _plain(value: float) -> float | str:
    """A number for JSON, which has no form for infinities and NaN."""
    return value if np.isfinite(value) else str(value)
