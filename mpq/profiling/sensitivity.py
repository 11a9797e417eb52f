"""The sensitivity profile: a damage table, filled by one of six methods, that survives a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from mpq.errors import PlanError, RunError
from mpq.formats.format import Format
from mpq.modeling.sites import Place, places
from mpq.modeling.validity import check_plan
from mpq.plans.site import Site
from mpq.profiling import first_order, outputs, squared_error
from mpq.profiling.candidates import Candidates, Progress
from mpq.profiling.direct import kl_damage
from mpq.profiling.fisher import fisher_damage, parts_within
from mpq.profiling.shares import share_damage
from mpq.profiling.table import DamageTable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mpq.data.examples import Examples

Method = Literal["shares", "fisher", "kl", "fisher-output", "first-order", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
"""`shares`: one backward pass for each format; `fisher`: all pairs from one backward pass; `kl`:
one forward pass for each pair; `fisher-output` (as Model Optimizer has it): all pairs from one
backward pass; `first-order` (as auto-round has it): one backward pass for each format; `mse`:
from the weights alone."""

_ONLY: Mapping[str, tuple[Callable[[Place], bool], str]] = {
    "fisher-output": (outputs.is_measured, outputs.MEASURED),
    "first-order": (first_order.is_measured, first_order.MEASURED),
    "mse": (squared_error.is_measured, squared_error.MEASURED),
}
"""Method -> what alone it can measure, and that in words."""

MAX_FISHER_BYTES = 8 << 30
"""Fisher information held at a time (8 GiB): larger models take several passes over the data."""

_SAVE_SECONDS = 2.0
"""Measured sites are written out this often at least, and each at once where sites are slow."""


def _silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""


def empty_table(
    method: str,
    *,
    tokens: int,
    fingerprint: str,
    data_sha256: str,
    seed: int,
    judge_every: int = 1,
) -> DamageTable:
    """A table without sites that says what `method` measures on, and nothing that it does not.

    Args:
        method: One of `METHODS`.
        tokens: Tokens (examples) of the data; 0 in the table of a method that looks at none.
        fingerprint: Of the model.
        data_sha256: Of the data; empty for a method that looks at none.
        seed: Of what is drawn at random; 0 for a method that draws nothing.
        judge_every: Every how many positions are judged; 1 for a method that judges none.
    """
    looks = method != "mse"
    return DamageTable.empty(
        method=method,
        tokens=tokens if looks else 0,
        fingerprint=fingerprint,
        data_sha256=data_sha256 if looks else "",
        seed=seed if method == "fisher" else 0,
        judge_every=judge_every if method in ("shares", "kl") else 1,
    )


def measure_sensitivity(
    model: PreTrainedModel,
    data: Tensor | Examples,
    candidates: Candidates,
    table: DamageTable,
    *,
    save: Callable[[DamageTable], None] = lambda _: None,
    batch_size: int = 8,
    progress: Progress = _silent,
) -> DamageTable:
    """`table` with the damage of all candidates; pairs that it has already are not measured.

    Args:
        model: A model as loaded, outside of any plan, in eval mode.
        data: Token windows `[N, T]`, or examples of a classification.
        candidates: Which formats of which sites.
        table: What was measured before, and how to measure (`method`, `seed`,
            `judge_every`).
        save: Given the table so far, every few seconds and at the end, also when interrupted.
        batch_size: Windows a pass; the method `fisher` takes one at a time.
        progress: Told how far the profile has come.

    Raises:
        RunError: The table's method is none of `METHODS`.
        PlanError: Formats that a site cannot take, or sites that the method cannot measure, all
            of them; nothing is measured then.
    """
    if table.method not in METHODS:
        raise RunError(
            f"sensitivity is measured by one of {', '.join(METHODS)}; "
            f"{table.method!r} is none of them"
        )
    _refuse_impossible(model, candidates, table.method)
    missing = _missing(candidates, table)
    if not missing:
        return table
    if table.method == "shares":
        missing = _in_company(candidates, missing)
    steps = _steps(model, data, missing, table, batch_size, progress)
    found: dict[tuple[str, str], float] = {}
    saved_at = time.monotonic()
    try:
        for site, damage in steps:
            found |= {(site.name, text): value for text, value in damage.items()}
            if time.monotonic() - saved_at >= _SAVE_SECONDS:
                table, found = table.with_damage(found), {}
                save(table)
                saved_at = time.monotonic()
    finally:
        table = table.with_damage(found)
        if table.sites:
            save(table)
    return table


def _refuse_impossible(model: PreTrainedModel, candidates: Candidates, method: str) -> None:
    """Raises PlanError with all that cannot be measured, before hours are spent."""
    known = places(model)
    faults = list(_beyond(method, {place.site.name: place for place in known}, candidates))
    for fmt in dict.fromkeys(fmt for formats in candidates.values() for fmt in formats):
        for is_output in (True, False):  # a plan may not hold both k and the output that it is
            names = [
                site.name
                for site, formats in candidates.items()
                if fmt in formats and (site.role == "output") == is_output
            ]
            try:
                check_plan(model, dict.fromkeys(names, fmt), known)
            except PlanError as error:
                faults.append(str(error))
    if faults:
        raise PlanError("\n".join(faults))


def _beyond(
    method: str, places_by_name: Mapping[str, Place], candidates: Candidates
) -> Iterator[str]:
    """The sites that a method has no damage of, as one fault."""
    if method not in _ONLY:
        return
    is_measured, measured = _ONLY[method]
    names = [
        site.name
        for site in candidates
        if site.name in places_by_name and not is_measured(places_by_name[site.name])
    ]
    if names:
        yield (
            f"{method} measures {measured}; these sites are none: {', '.join(names)}. "
            "Leave them out, or profile with the method fisher or kl"
        )


def _missing(candidates: Candidates, table: DamageTable) -> Candidates:
    """The pairs that the table has no damage of."""
    missing: dict[Site, tuple[Format, ...]] = {}
    formats = list(dict.fromkeys(fmt for some in candidates.values() for fmt in some))
    known = table.select([site.name for site in candidates], [str(fmt) for fmt in formats])
    column = {fmt: index for index, fmt in enumerate(formats)}
    for row, (site, wanted) in enumerate(candidates.items()):
        left = tuple(fmt for fmt in wanted if math.isnan(known[row, column[fmt]]))
        if left:
            missing[site] = left
    return missing


def _in_company(candidates: Candidates, missing: Candidates) -> Candidates:
    """All sites of each format that one of them lacks: each is the others' company."""
    wanted = {fmt for formats in missing.values() for fmt in formats}
    return {
        site: tuple(fmt for fmt in formats if fmt in wanted)
        for site, formats in candidates.items()
    }


def _steps(
    model: PreTrainedModel,
    data: Tensor | Examples,
    missing: Candidates,
    table: DamageTable,
    batch_size: int,
    progress: Progress,
) -> Iterator[tuple[Site, dict[str, float]]]:
    if table.method == "shares":
        yield from share_damage(
            model, data, missing, judge_every=table.judge_every, progress=progress
        )
    elif table.method == "kl":
        yield from kl_damage(
            model,
            data,
            missing,
            batch_size=batch_size,
            judge_every=table.judge_every,
            progress=progress,
        )
    elif table.method == "fisher-output":
        yield from outputs.output_damage(
            model, data, missing, batch_size=batch_size, progress=progress
        )
    elif table.method == "first-order":
        yield from first_order.first_order_damage(
            model, data, missing, batch_size=batch_size, progress=progress
        )
    elif table.method == "mse":
        yield from squared_error.squared_error_damage(model, missing, progress=progress)
    else:
        for part in parts_within(missing, MAX_FISHER_BYTES):
            yield from fisher_damage(model, data, part, seed=table.seed, progress=progress)
