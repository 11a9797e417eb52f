"""What measures the plans of a search: the model on one split, with all that a run keeps of it.

It is what a search calls (`mpq.search.objective.Evaluate`) and what looks at its plans.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mpq.cli.search_wiring import Subject
    from mpq.measures import Teacher
    from mpq.plans.move import Moves
    from mpq.plans.plan import Plan
    from mpq.search.objective import UserFunction
    from mpq.search.space import FloatArray

TEACHER_SHARE = 0.125
"""Share of the device's memory that the teacher's probabilities may fill: on search text, and on
held-out text."""

MEASURES = ("kl", "loss", "accuracy")


class Evaluation:
    """Measures plans on one split; see `mpq.search.objective.Evaluate`.

    Attributes:
        num_windows: Windows (or examples) of the split.
        batch_size: Of them in one forward pass.
    """

    def __init__(self, subject: Subject, split: Any) -> None:
        """Cuts the split into batches; runs nothing."""
        from mpq.modeling.scoring import Scorer

        self._subject = subject
        self._model = subject.loaded.model
        self._cache = subject.cache
        data = subject.config.data
        self.batch_size = data.batch_size
        self._scorer = Scorer(
            self._model,
            data_of(split),
            batch_size=data.batch_size,
            judge_every=data.judge_every,
            max_cache_bytes=int(TEACHER_SHARE * memory_bytes(self._model.device)),
        )
        self.num_windows = self._scorer.num_windows
        self._function_seconds = 0.0
        self._teachers: list[Teacher] = []

    @property
    def forward_seconds(self) -> float:
        """Seconds spent in the model, the measures and the user's functions so far."""
        return self._scorer.forward_seconds + self._function_seconds

    def __call__(
        self, plan: Plan, first: int = 0, last: int | None = None
    ) -> Mapping[str, FloatArray]:
        """Measure -> its value in each of the windows `first` to `last`."""
        from mpq.modeling.wrap import apply_plan

        scores = self._scorer.score(
            lambda: apply_plan(self._model, plan, cache=self._cache), first=first, last=last
        )
        return {name: np.asarray(getattr(scores, name).numpy()) for name in MEASURES}

    def in_plan(self, plan: Plan) -> Moves:
        """What moves of the searched weights would do to a plan; see `mpq.profiling.in_plan`."""
        from mpq.profiling.in_plan import moves_in_plan

        start = time.perf_counter()
        config = self._subject.config
        data = first_share(self._subject.splits.calibration, config.profile.in_plan)
        found = moves_in_plan(
            self._model,
            data,
            plan,
            self._subject.candidates,
            judge_every=config.data.judge_every,
            cache=self._cache,
            teachers=self._teachers,
        )
        self._function_seconds += time.perf_counter() - start
        return found

    def bind(self, function: Callable[[Plan, Any], float]) -> UserFunction:
        """A user's function of (plan, model), called with the model under the plan."""
        from mpq.modeling.wrap import apply_plan

        def measured(plan: Plan) -> float:
            with apply_plan(self._model, plan, cache=self._cache):
                start = time.perf_counter()
                value = float(function(plan, self._model))
                self._function_seconds += time.perf_counter() - start
            return value

        return measured


def data_of(split: Any) -> Any:
    """What a scorer takes: the tokens `[N, T]` of windows, or the examples as they are."""
    return split.tokens if hasattr(split, "tokens") else split


def first_share(split: Any, share: float) -> Any:
    """What a scorer takes, of the first windows or examples of a split, at least one."""
    data = data_of(split)
    if hasattr(split, "tokens"):
        return data[: max(1, round(share * len(data)))]
    count = max(1, round(share * len(data.labels)))
    rows = ("input_ids", "attention_mask", "labels")
    return replace(data, **{name: getattr(data, name)[:count] for name in rows})


def memory_bytes(device: Any) -> int:
    """Memory of a device: of the GPU, or of this machine."""
    import os

    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
