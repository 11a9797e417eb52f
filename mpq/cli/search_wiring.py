"""What a search works on, built from a config: model, data, damage table, space, measurements.

The stages do not know each other; here they are put together.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpq.cli.evaluation import data_of, memory_bytes
from mpq.errors import ConfigError

if TYPE_CHECKING:
    from mpq.config import SearchConfig
    from mpq.formats.format import Format
    from mpq.modeling.loading import LoadedModel
    from mpq.modeling.weights import WeightCache
    from mpq.plans.plan import Plan
    from mpq.plans.site import Site
    from mpq.profiling.table import DamageTable
    from mpq.search.objective import Objective
    from mpq.search.settings import SearchSettings
    from mpq.search.space import Space

CACHE_SHARE = 0.25
"""Share of the device's memory that quantised weights may fill."""


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


def measure_damage(
    subject: Subject, folder: Path, progress: Callable[[str, int, int], None]
) -> DamageTable:
    """The damage of every searched site in every candidate, from the run or measured into it.

    Raises:
        MpqError: The run's table was measured on something else, or a format fits no site.
    """
    from mpq.profiling.resuming import start_table
    from mpq.profiling.sensitivity import empty_table, measure_sensitivity
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
        judge_every=config.data.judge_every,
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
    from mpq.search.build import build_space

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
