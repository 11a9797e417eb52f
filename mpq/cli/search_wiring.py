"""What a search works on, built from a config: model, data, damage table, space, measurements.

The stages do not know each other; here they are put together.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpq.errors import ConfigError

if TYPE_CHECKING:
    from mpq.config import SearchConfig
    from mpq.formats.format import Format
    from mpq.modeling.loading import LoadedModel
    from mpq.modeling.weights import WeightCache
    from mpq.plans.plan import Plan
    from mpq.plans.site import Site
    from mpq.profiling.table import DamageTable
    from mpq.search.objective import Objective, UserFunction
    from mpq.search.settings import SearchSettings
    from mpq.search.space import FloatArray, Space

CACHE_SHARE = 0.25
"""Share of the device's memory that quantised weights may fill."""

TEACHER_SHARE = 0.125
"""Share of it that the teacher's probabilities may fill: on search text, and on held-out text."""

MEASURES = ("kl", "loss", "accuracy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is searched, before anything was measured.

    Attributes:
        config: The resolved config.
        loaded: Model and tokenizer.
        splits: Calibration, search and held-out data.
        sites: All sites that plans may name.
        candidates: Searched site -> its candidate formats.
        fixed: Site held at one format -> that format.
        cache: Quantised weights, shared by search and proof.
    """

    config: SearchConfig
    loaded: LoadedModel
    splits: Any
    sites: tuple[Site, ...]
    candidates: Mapping[Site, tuple[Format, ...]]
    fixed: Mapping[str, Format]
    cache: WeightCache


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

    def in_plan(self, plan: Plan) -> dict[str, float]:
        """What each searched weight costs within the plan; see `mpq.profiling.in_plan`."""
        from mpq.profiling.in_plan import damage_in_plan

        start = time.perf_counter()
        config = self._subject.config
        data = first_share(self._subject.splits.calibration, config.profile.in_plan)
        found = damage_in_plan(
            self._model,
            data,
            plan,
            self._subject.candidates,
            seed=config.search.seed,
            judge_every=config.data.judge_every,
            cache=self._cache,
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


def load_subject(config: SearchConfig) -> Subject:
    """Model, data and searched sites of a config.

    Raises:
        MpqError: Whatever of it cannot be had as asked.
    """
    from mpq.cli.inputs import load_data_of, load_model_of
    from mpq.formats.zoo import parse_format
    from mpq.modeling.sites import sites
    from mpq.modeling.weights import WeightCache
    from mpq.plans.rules import resolve
    from mpq.profiling.candidates import candidates_of

    loaded = load_model_of(config)
    include = config.space.include
    found = sites(
        loaded.model,
        lm_head="lm_head" in include,
        embeddings="embeddings" in include,
        bias="bias" in include,
        output="output" in include,
    )
    fixed = dict(resolve(config.space.fixed, found).formats)
    searched = candidates_of(
        found,
        patterns=config.space.sites,
        formats=[parse_format(text) for text in config.space.formats],
        formats_for={
            pattern: [parse_format(text) for text in texts]
            for pattern, texts in config.space.formats_for.items()
        },
    )
    return Subject(
        config=config,
        loaded=loaded,
        splits=load_data_of(config, loaded.tokenizer),
        sites=found,
        candidates={
            site: tuple(formats) for site, formats in searched.items() if site.name not in fixed
        },
        fixed=fixed,
        cache=WeightCache(int(CACHE_SHARE * memory_bytes(loaded.model.device))),
    )


def memory_bytes(device: Any) -> int:
    """Memory of a device: of the GPU, or of this machine."""
    import os

    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_damage(
    subject: Subject, folder: Path, progress: Callable[[str, int, int], None]
) -> DamageTable:
    """The damage of every searched site in every candidate, from the run or measured into it.

    Raises:
        MpqError: The run's table was measured on something else, or a format fits no site.
    """
    from mpq.profiling.sensitivity import empty_table, measure_sensitivity, start_table
    from mpq.profiling.table import table_name

    config = subject.config
    method = config.profile.method
    split = subject.splits.calibration
    data = data_of(split)
    wanted = empty_table(
        method,
        tokens=data.numel() if hasattr(split, "tokens") else len(split.labels),
        fingerprint=subject.loaded.fingerprint,
        data_sha256=split.sha256,
        seed=config.search.seed,
    )
    path = folder / table_name(method)
    return measure_sensitivity(
        subject.loaded.model,
        data,
        subject.candidates,
        start_table(path, wanted),
        save=lambda table: table.write(path),
        batch_size=config.data.batch_size,
        progress=progress,
    )


def make_space(subject: Subject, table: DamageTable | None) -> Space:
    """The searched space; without a table every damage is 0 (enough to count and to price it).

    Raises:
        PlanError: The searched sites make no space.
    """
    from mpq.search.space import build_space

    names = [site.name for site in subject.candidates]
    texts = list(dict.fromkeys(str(f) for some in subject.candidates.values() for f in some))
    identities = {str(f) for some in subject.candidates.values() for f in some if f.is_identity}
    damage = np.zeros((len(names), len(texts)))
    if table is not None:
        damage = table.select(names, texts)
    row = {name: index for index, name in enumerate(names)}
    column = {text: index for index, text in enumerate(texts)}

    def look_up(site: str, text: str) -> float:
        return 0.0 if text in identities else float(damage[row[site], column[text]])

    return build_space(
        subject.sites,
        {site.name: formats for site, formats in subject.candidates.items()},
        fixed=subject.fixed,
        damage=look_up,
        tie=subject.config.space.tie,
        tokens=subject.config.cost.tokens,
        model=subject.loaded.id,
        fingerprint=subject.loaded.fingerprint,
    )


def settings_of(config: SearchConfig) -> SearchSettings:
    """What `[search]` and `[space]` tell the study."""
    from mpq.search.settings import SearchSettings

    section = config.search
    timeout = section.timeout_minutes
    return SearchSettings(
        mode=config.space.mode,
        sampler=section.sampler,
        trials=section.trials,
        refine=section.refine,
        seed=section.seed,
        budget=dict(section.budget.items()),
        pruner=section.pruner,
        targets=section.targets,
        anchors=section.anchors,
        rungs=section.rungs,
        timeout_seconds=None if timeout is None else 60 * timeout,
    )


def load_functions(
    objectives: tuple[Objective, ...],
) -> dict[str, Callable[[Plan, Any], float]]:
    """The user's functions among the objectives, imported; the working directory counts.

    Raises:
        ConfigError: A module or a function is not there, or is not callable.
    """
    found = {}
    for objective in objectives:
        if objective.source != "function":
            continue
        module_name, _, function_name = objective.function.partition(":")
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"search.objectives: {objective.name!r} names a function of (plan, model) -> "
                f"float that can be imported from here; {error}"
            ) from error
        if not callable(function):
            raise ConfigError(
                f"search.objectives: {objective.name!r} is a {type(function).__name__}; "
                "expected a function of (plan, model) -> float"
            )
        found[objective.name] = function
    return found
